"""What a report says, as data: `report.json` for programs, beside the page for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from synthgen.report.samples import Tile
from synthgen.types import ShardManifest

SCHEMA = "synthgen.report/1"
IN_THE_GATE = ("kept", "dropped")
"""Of the gate's report, what has an entry a sample: counted here, in full in gate.json."""


def as_data(view: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a page as JSON types; images by their keys, and what has an entry a sample as counts.

    Args:
        view: see `page.view_of`.
    """
    evidence = view["evidence"]
    spec, manifest = evidence.spec, evidence.manifest
    return {
        "schema": SCHEMA,
        "run": evidence.name,
        "dataset": spec and {"name": spec.name, "image_shape": list(spec.image_shape), "class_names": list(spec.class_names),
                             "fingerprint": spec.fingerprint},
        "verdict": view["kind"],
        "headline": view["headline"],
        "explained": view["explained"],
        "in_words": view["in_words"],
        "reasons": view["verdict"].get("reasons") or [],
        "best_generator": view["verdict"].get("best_generator"),
        "facts": [{"what": what, "figure": figure, "said": said} for what, figure, said in view["facts"]],
        "gain": _gain(view["gain"]),
        "generators": {each["name"]: _generator(each, view["gate"]["tables"].get(each["name"])) for each in view["generators"]},
        "audit": _audit(evidence.audit, view["audit"]),
        "seconds": evidence.seconds,
        "provenance": {
            "drawn": evidence.lineage.drawn,
            "plans": evidence.lineage.plans,
            "chosen": evidence.lineage.chosen,
            "test_opened": evidence.lineage.opened,
            "stages": [dataclasses.asdict(stage) for stage in evidence.lineage.stages],
            "export": manifest and {
                "num_samples": manifest.num_samples,
                "class_counts": manifest.class_counts,
                "licence": manifest.licence,
                "num_withdrawn": len(manifest.dropped),
                "formats": _formats(manifest),
                "beside": {"files": len(manifest.files), "bytes": sum(file.num_bytes for file in manifest.files)},
                "provenance": dataclasses.asdict(manifest.provenance),
            },
        },
        "commands": [{"does": does, "command": command} for does, command in view["commands"]],
        "config": evidence.config,
        "missing": view["missing"],
    }  # fmt: skip


def _formats(manifest: ShardManifest) -> dict[str, dict[str, int]]:
    """Files, samples and bytes of each format; the files one by one stand in MANIFEST.json."""
    found: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        total = found.setdefault(shard.format, {"files": 0, "samples": 0, "bytes": 0})
        total["files"] += 1
        total["samples"] += shard.num_samples
        total["bytes"] += shard.num_bytes
    return found


def _gain(view: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if view is None:
        return None
    report = view["report"]
    data: dict[str, Any] = {"arms": view["arms"], "cost": {k: v for k, v in view["cost"].items() if k != "rows"}}
    if report is None:
        return data
    curve = report.curve
    return data | {
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "advice": list(report.advice),
        "best_real": report.best_real,
        "best_synthetic": report.best_synthetic,
        "intervals": [dataclasses.asdict(i) for i in report.intervals],
        "decisive": [list(pair) for pair in report.decisive],
        "curve": curve and dataclasses.asdict(curve),
        "controls": [dataclasses.asdict(control) for control in report.controls],
        "classes": [dataclasses.asdict(of_class) for of_class in report.classes],
        "skipped": report.skipped,
    }


def _generator(view: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    gate, grid = view["gate"], view["grid"]
    looks = view["looks"]
    data: dict[str, Any] = {
        "num_candidates": view["num_candidates"] or (gate.num_candidates if gate else 0),
        "gate": None,
        "samples": {
            name: {mark: [_tile(tile) for tile in tiles] for mark, tiles in groups}
            for name, groups in (grid or {"rows": ()})["rows"]
        },
        "nearest": {
            mark: [{"sample": _tile(pair["sample"]), "real": _tile(pair["real"]), "distance": pair["distance"]} for pair in pairs]
            for mark, _, pairs in view["nearest"]
        },
        "worst": [
            {key: block[key] for key in ("reason", "count", "signal", "threshold")}
            | {"samples": [_tile(tile) for tile in block["tiles"]]}
            for block in view["worst"]
        ],
        "training": {"last_losses": view["last_losses"], "looks": looks.rows, "kept_step": looks.kept, "stopped": looks.stopped},
    }
    if gate is not None:
        told = {key: value for key, value in gate.to_json().items() if key not in IN_THE_GATE}
        shown = {row.metric.name: row for row in rows or ()}
        for metric in told["metrics"]:
            row = shown.get(metric["name"])
            metric["real_against_real"] = list(row.real) if row and row.real else None
            metric["share_of_limit"] = list(row.share) if row and row.share else None
        data["gate"] = told | {"num_kept": len(gate.kept), "dropped": view["counts"]}
    return data


def _audit(report: Mapping[str, Any] | None, view: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The audit's own report, and the images whose labels look wrong that the page shows."""
    if report is None or view is None:
        return None
    shown = view["doubtful"]["tiles"] if view["doubtful"] else ()
    return {**report, "doubtful_shown": [{"key": tile.key, "label": tile.caption} for tile in shown]}


def _tile(tile: Tile) -> dict[str, Any]:
    """An image by its key, with what is known of it."""
    data: dict[str, Any] = {"key": tile.key, "class": tile.of}
    if tile.reasons:
        data["reasons"] = list(tile.reasons)
    if tile.signals:
        data["signals"] = {name: value for name, (value, _, _) in tile.signals.items()}
    if tile.near:
        data["nearest"] = {"key": tile.near[0], "distance": tile.near[1]}
    return data
