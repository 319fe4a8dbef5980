"""Finished runs side by side: verdict, gain, gate, data and cost, and the settings that differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import DataError, SynthgenError
from synthgen.report import charts, plain
from synthgen.report.evidence import generator_names, json_object, read_gain, read_gate, read_verdict
from synthgen.report.lineage import DIGEST_CHARS, lineage
from synthgen.report.page import render
from synthgen.report.portable import Portable, settings_in
from synthgen.report.styles import Styles
from synthgen.report.wording import duration, interval, num, pct, signed, words
from synthgen.types import DatasetSpec, GainReport, GateReport

SCHEMA = "synthgen.compare/1"
METRICS = (
    *("fid", "precision", "recall", "density", "coverage", "pixel_recall", "label_agreement", "copy_share", "defect_shift"),
)
"""Of the gate's metrics, those that a table of many runs has room for."""
NONE = "—"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as far as it is compared; None where the run doesn't say.

    Attributes:
        name: of its folder, with as much of the path as tells it from the others.
        split: digest of the split folder; "" where the split isn't the run's own.
        sizes: role -> images.
        settings: key with dots -> value.
        gates: in the order of the verdict.
    """

    name: str
    verdict: dict[str, Any]
    spec: DatasetSpec | None
    split: str
    sizes: dict[str, int]
    settings: dict[str, Any]
    gates: dict[str, GateReport]
    gain: GainReport | None
    codes: list[str]

    def gained(self) -> dict[str, Any] | None:
        """The comparison with the strongest real-only arm: from the study, or else from the verdict."""
        first = plain.first_interval(self.gain) if self.gain else None
        arms = self.verdict.get("arms") or {}
        if first is not None:
            found = {"arm": first.arm, "baseline": first.baseline, "difference": first.difference, "low": first.low,
                     "high": first.high, "seeds": first.seeds}  # fmt: skip
        else:
            best = next((name for name, said in arms.items() if said.get("best_synthetic")), None)
            base = next((name for name, said in arms.items() if said.get("best_real")), None)
            if best is None or base is None:
                return None
            said = arms[best]
            found = {"arm": best, "baseline": base, "difference": said.get("difference"), "low": said.get("difference_low"),
                     "high": said.get("difference_high"), "seeds": said.get("seeds")}  # fmt: skip
        curve = self.gain.curve if self.gain else None
        worth = next((e.equivalent for e in curve.exchange if e.arm == found["arm"]), None) if curve else None
        with_, without = (arms.get(found[side], {}).get("test_accuracy") for side in ("arm", "baseline"))
        return found | {"accuracy": with_, "accuracy_real": without, "worth": worth}

    def to_json(self) -> dict[str, Any]:
        """The figures behind the table."""
        spec = self.spec
        return {
            "name": self.name,
            "verdict": self.verdict.get("verdict"),
            "reasons": self.verdict.get("reasons") or [],
            "best_generator": self.verdict.get("best_generator"),
            "gain": self.gained(),
            "gate": {
                name: {
                    "verdict": gate.verdict,
                    "kept": len(gate.kept),
                    "candidates": gate.num_candidates,
                    "metrics": {m.name: {"value": m.value, "reference": m.reference, "excess": m.excess, "low": m.low,
                                         "high": m.high, "limit": m.limit, "verdict": m.verdict} for m in gate.metrics},
                }
                for name, gate in self.gates.items()
            },
            "data": spec and {"name": spec.name, "fingerprint": spec.fingerprint, "num_classes": spec.num_classes,
                              "image_shape": list(spec.image_shape)},
            "split": {"digest": self.split, "sizes": self.sizes},
            "seconds": self.verdict.get("seconds") or {},
            "code": self.codes,
        }  # fmt: skip


def compared(folders: Sequence[Path]) -> dict[str, Any]:
    """Runs side by side, as JSON types.

    Returns:
        `columns`: names of the runs. `rows`: dicts of section, name and cells (a text a run). `settings`: dicts of key and
        values, those that differ. `notes`: what else differs, a sentence each. `runs`: the figures behind the cells.

    Raises:
        DataError: fewer than two runs, one of them twice, or one that isn't finished or is damaged.
    """
    if len(folders) < 2:
        given = f"only {folders[0]} was given" if folders else "none was given"
        raise DataError(f"a comparison needs two runs or more, and {given}; name another run folder beside it")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (place := folder.resolve()) in seen:
            raise DataError(f"{folder}: this run is named twice (also as {seen[place]}); name each run once")
        seen[place] = folder
    runs = [_read(folder, name) for folder, name in zip(folders, _names([*seen]), strict=True)]
    return {
        "schema": SCHEMA,
        "columns": [run.name for run in runs],
        "rows": list(_rows(runs)),
        "settings": _differing([run.settings for run in runs]),
        "notes": _notes(runs),
        "runs": [Portable("", "").data(run.to_json()) for run in runs],
    }


def page(found: Mapping[str, Any]) -> str:
    """What `compared` gives as one self-contained HTML page."""
    gains = [(run["name"], run["gain"]) for run in found["runs"] if run["gain"] and run["gain"]["low"] is not None]
    rows = [
        charts.Estimate(
            name,
            gain["difference"],
            gain["low"],
            gain["high"],
            gain["low"] > 0,
            True,
            f"{gain['arm']} against {gain['baseline']}",
        )
        for name, gain in gains
    ]
    sections = list(dict.fromkeys(row["section"] for row in found["rows"]))
    view = {
        "found": found,
        "forest": charts.forest(rows, "difference, points of test accuracy") if rows else None,
        "sections": [(section, [row for row in found["rows"] if row["section"] == section]) for section in sections],
        "shown": _shown,
    }
    title = f"{len(found['columns'])} runs side by side, synthgen"
    return render("compare.html", title, view, Styles(), Portable("", ""))


# Reading


def _read(folder: Path, name: str) -> Run:
    """A run folder.

    Raises:
        DataError: it isn't there, isn't finished, or is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of a finished run")
    if not (folder / "verdict.json").is_file():
        raise DataError(
            f"{folder}: no verdict.json, so it isn't a finished run; run the same `synthgen run` or `synthgen gain` again to "
            "finish it, or name another folder"
        )
    try:
        verdict = read_verdict(folder)
        config = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else ""
        portable = Portable(str(folder.resolve()), config)
        spec_file, audit_file, study = folder / "split" / "dataset.json", folder / "audit" / "report.json", folder / "gain"
        counts = json_object(audit_file).get("split_counts") or {} if audit_file.is_file() else {}
        return Run(
            name=portable.text(name),
            verdict=portable.data(verdict),
            spec=DatasetSpec.from_json(json_object(spec_file), str(spec_file)) if spec_file.is_file() else None,
            split=storage.folder_digest(spec_file.parent) if (spec_file.parent / storage.STAGE_MANIFEST).is_file() else "",
            sizes={role: sum(by_class.values()) for role, by_class in counts.items()},
            settings={key: portable.data(value) for key, value in _flat(settings_in(config) or {})},
            gates=dict(_gates(folder, verdict)),
            gain=read_gain(study / "gain.json") if (study / "gain.json").is_file() else None,
            codes=lineage(folder).codes,
        )
    except SynthgenError as error:
        raise DataError(f"{folder}: {error}; finish or repair this run, or leave it out") from None
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}: damaged ({type(error).__name__}: {' '.join(str(error).split())}); repair this run, or leave it out"
        ) from None


def _gates(folder: Path, verdict: dict[str, Any]) -> Iterator[tuple[str, GateReport]]:
    for name in generator_names(folder, verdict):
        own, only = folder / "gate" / name / "gate.json", folder / "gate" / "gate.json"
        path = own if own.is_file() else only
        if path.is_file() and (path == own or name in (verdict.get("gate") or {})):
            yield name, read_gate(path)


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(entry, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def _names(places: Sequence[Path]) -> list[str]:
    """The last names of the folders, with as much before them as tells them apart."""
    for length in range(1, 4):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [f"{place.name} ({number})" for number, place in enumerate(places, 1)]


# What is said


def _rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    def row(section: str, name: str, cells: Sequence[str]) -> dict[str, Any]:
        return {"section": section, "name": name, "cells": list(cells)}

    gains = [run.gained() for run in runs]
    yield row("verdict", "verdict", [str(run.verdict.get("verdict")) for run in runs])
    yield row("verdict", "generator that was studied", [str(run.verdict.get("best_generator") or NONE) for run in runs])
    yield row("gain", "gain over real alone, points", [_gain(gain) for gain in gains])
    yield row("gain", "arms compared", [f"{g['arm']} against {g['baseline']}" if g else NONE for g in gains])
    yield row("gain", "accuracy, with and without", [
        f"{pct(g['accuracy'], 2)}, {pct(g['accuracy_real'], 2)}" if g else NONE for g in gains
    ])  # fmt: skip
    yield row("gain", "worth in real images", [num(round(g["worth"])) if g and g["worth"] is not None else NONE for g in gains])
    yield row("gain", "classifier seeds", [num(g["seeds"]) if g else NONE for g in gains])
    generators = list(dict.fromkeys(name for run in runs for name in run.gates))
    for name in generators:
        gates = [run.gates.get(name) for run in runs]
        yield row(f"gate, {name}", "verdict", [gate.verdict if gate else NONE for gate in gates])
        yield row(f"gate, {name}", "kept", [_kept(gate) for gate in gates])
        for metric in METRICS:
            cells = [_metric(gate, metric) for gate in gates]
            if any(cell != NONE for cell in cells):
                yield row(f"gate, {name}", words(metric), cells)
    specs = [run.spec for run in runs]
    yield row("data", "data set", [spec.name if spec else "not in this run" for spec in specs])
    yield row("data", "fingerprint", [spec.fingerprint[:DIGEST_CHARS] if spec else NONE for spec in specs])
    yield row("data", "classes and shape", [
        f"{spec.num_classes}, {'x'.join(map(str, spec.image_shape))}" if spec else NONE for spec in specs
    ])  # fmt: skip
    yield row("data", "split", [run.split[:DIGEST_CHARS] or NONE for run in runs])
    for role in dict.fromkeys(role for run in runs for role in run.sizes):
        yield row("data", f"images in {role}", [num(run.sizes[role]) if role in run.sizes else NONE for run in runs])
    told = [_seconds(run) for run in runs]
    yield row("cost", "all stages added up", [duration(sum(seconds.values())) if seconds else NONE for seconds in told])
    for stage in ("train", "gate", "gain"):
        spent = [[s for name, s in seconds.items() if name.split("/")[0] == stage] for seconds in told]
        if any(spent):
            yield row("cost", stage, [duration(sum(each)) if each else NONE for each in spent])
    yield row("made by", "synthgen", [", ".join(run.codes) or NONE for run in runs])


def _gain(found: Mapping[str, Any] | None) -> str:
    return f"{signed(found['difference'])} ({interval((found['low'], found['high']))})" if found else NONE


def _kept(gate: GateReport | None) -> str:
    if gate is None:
        return NONE
    share = len(gate.kept) / gate.num_candidates if gate.num_candidates else 0.0
    return f"{num(len(gate.kept))} of {num(gate.num_candidates)} ({pct(share)})"


def _metric(gate: GateReport | None, name: str) -> str:
    metric = next((m for m in gate.metrics if m.name == name), None) if gate else None
    if metric is None:
        return NONE
    if metric.value is None:
        return "refused"
    broken = {"reject": ", breaks its limit", "insufficient evidence": ", open"}.get(metric.verdict, "")
    return f"{num(metric.value, 3)} (real {num(metric.reference, 3)}){broken if metric.limit is not None else ''}"


def _seconds(run: Run) -> dict[str, float]:
    told = run.verdict.get("seconds")
    return {k: float(v) for k, v in told.items() if isinstance(v, (int, float))} if isinstance(told, dict) else {}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Keys whose values aren't the same in all runs; None where a run hasn't the key."""
    keys = dict.fromkeys(key for each in settings for key in each)
    rows = [{"key": key, "values": [each.get(key) for each in settings]} for key in keys]
    return [row for row in rows if len({json.dumps(value, sort_keys=True, default=str) for value in row["values"]}) > 1]


def _notes(runs: Sequence[Run]) -> list[str]:
    """What to mind when these runs are read beside each other."""
    data = {run.spec.fingerprint if run.spec else "" for run in runs}
    splits, codes = {run.split for run in runs}, {", ".join(run.codes) for run in runs}
    unknown = [run.name for run in runs if run.spec is None]
    notes = []
    if unknown:
        notes.append(f"The real images aren't part of {', '.join(unknown)}: whether data and split are the same can't be told.")
    if len(data - {""}) > 1:
        which = "; ".join(f"{run.name}: {run.spec.name} ({run.spec.fingerprint[:DIGEST_CHARS]})" for run in runs if run.spec)
        notes.append(
            f"Different data ({which}): each verdict stands for its own images, and scores, FID and gains can't be compared."
        )
    elif len(splits - {""}) > 1:
        notes.append(
            "The same data, split differently: each run has its own train and test images, so a difference between runs may "
            "be the split's. Each gain is paired within its run and can be read by itself."
        )
    elif not unknown:
        notes.append("The same data and the same split: scores stand for the same test images.")
    if len(codes) > 1:
        notes.append("Made by different versions of synthgen: the same settings needn't give the same results.")
    return notes


def _shown(value: Any) -> str:
    """A setting as it is written in a table."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
