"""Kept candidates -> shards, with what is known of each sample and of the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synthgen import elsewhere, storage
from synthgen.errors import DataError
from synthgen.gate.signals import COPY_REASONS, FAMILIES
from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.gates import check_judged, load_gate
from synthgen.jobs.order import CANDIDATES, Order
from synthgen.jobs.real import Split
from synthgen.shapes import Int64, UInt8
from synthgen.shards import card, croissant, manifest, raw, table
from synthgen.shards.arrange import arranged
from synthgen.shards.encode import CHUNK, Encoded, encoded
from synthgen.shards.pages import Rows
from synthgen.shards.write import Limits, file_of, write
from synthgen.types import (
    Batch,
    DatasetSpec,
    GainReport,
    GateReport,
    Provenance,
    SampleInfo,
    ShardManifest,
    Verdict,
)

NEVER_CHANGE_A_BYTE = {"threads", "to"}
PLAN = ("generator", "plan", "sampling", "precision")
"""What candidates.json says of sampling."""


@dataclass(frozen=True)
class Decision:
    """What a run concluded of the set that is exported; `gain` is None where no study could be made."""

    verdict: Verdict
    reasons: tuple[str, ...]
    gain: GainReport | None

    @classmethod
    def of(cls, run: Path) -> Decision:
        """That of a finished run folder; raises DataError where it has no verdict."""
        said = storage.read_json(run / "verdict.json")
        path = run / "gain" / "gain.json"
        studied = GainReport.from_json(storage.read_json(path), str(path)) if path.is_file() else None
        return cls(said["verdict"], tuple(said["reasons"]), studied)


@dataclass(frozen=True)
class _Set:
    """Candidates with what is the same for all of them; `infos` where they don't come from a folder of `generate`."""

    images: Rows | UInt8[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]
    keys: Sequence[str]
    infos: Sequence[SampleInfo] | None
    common: SampleInfo
    about: dict[str, Any]
    digest: str


def export(order: Order, split: Split, candidates: Path, judged: Path, out: Path, decided: Decision | None = None) -> None:
    """Kept candidates -> shards, card, croissant.json and MANIFEST.json, byte-identical when written again.

    Pixels are read as they are needed: memory grows by some 300 bytes a sample, whatever its size.

    Args:
        order: settings.
        split: the real images that the gate compared with.
        candidates: see `load_candidates`.
        judged: the gate's word on them.
        out: of the export.
        decided: what a run concluded, for the card.

    Raises:
        DataError: the gate kept nothing; StorageError where `export.to` can't be written or holds another export.
    """
    config = order.config.export
    whole = _load(candidates, split.spec, order)
    check_judged(judged, split, whole.digest)
    inputs = {"split": split.digest, "candidates": whole.digest, "gate": storage.folder_digest(judged)}
    report = load_gate(judged)
    evidence = _evidence(report, decided)
    settings = config.model_dump(mode="json", exclude=NEVER_CHANGE_A_BYTE)
    settings |= {"seed": order.config.seed, "evidence": storage.sha256_json(evidence)}
    # a card that tells the gain anew replaces the one before it, here and at `to`, without being asked
    again = storage.finished_but_for(out, settings, inputs, ("evidence",)) and (out / manifest.NAME).is_file()
    before = storage.sha256_file(out / manifest.NAME) if again else ""
    with replace(order, restart=order.restart or again).stage(out, "export", settings, inputs) as work:
        if not work.done:
            keep = set(report.kept) if config.samples == "kept" else set(whole.keys)
            rows = np.array([i for i, key in enumerate(whole.keys) if key in keep], dtype=np.int64)
            if not len(rows):
                raise DataError(f"{judged}: the gate kept none of {len(whole.keys)} candidates, so there is nothing to export")
            if config.shuffle:
                rows = rows[arranged(whole.labels[rows], order.config.seed)]
            order.progress.start("export", len(rows))
            samples = _samples(whole, rows, table.open_table(judged / "scores.parquet"), report, config.licence)
            chunks = encoded(samples, split.spec, config.encoding, config.threads or os.cpu_count() or 1)
            limits = Limits(config.shard_size, config.shard_mb * 2**20)
            shards, files = write(out, _watched(chunks, order), split.spec, config.formats, limits)
            counts = np.bincount(whole.labels[rows], minlength=split.spec.num_classes)
            made = ShardManifest(
                spec=split.spec,
                shards=tuple(shards),
                files=tuple(files),
                num_samples=len(rows),
                class_counts=dict(zip(split.spec.class_names, counts.tolist(), strict=True)),
                gate_verdict=report.verdict,
                verdict=decided.verdict if decided else "",
                provenance=_provenance(whole, inputs),
                plan=_plan(whole),
                licence=config.licence,
                evidence=evidence,
            )
            conclude(out, made)
    found = manifest.read(out)
    if config.to:
        elsewhere.push(out, config.to, manifest.paths(found), manifest.listed, order.restart, before)
    line = f"{found.num_samples} samples in {len(found.shards)} shards, {storage.seconds(out):.1f} s"
    order.progress.finish("export", line + (f"; also at {elsewhere.without_login(config.to)}" if config.to else ""))


def conclude(out: Path, made: ShardManifest) -> ShardManifest:
    """Writes what tells of the samples, and the manifest last; returns it."""
    whole = made
    for name, text in (("README.md", card.text), ("croissant.json", croissant.text)):
        storage.write_text(out / name, text(whole))
        whole = replace(whole, files=(*whole.files, file_of(out, name)))
    manifest.write(out, whole)
    return whole


def _load(candidates: Path, spec: DatasetSpec, order: Order) -> _Set:
    """Candidates of ours stay on disk; another tool's are read."""
    if (candidates / CANDIDATES).is_file():
        storage.check_folder(candidates)
        found = raw.on_disk(candidates / CANDIDATES, spec)
        about = storage.read_json(candidates / "candidates.json")
        made = about["provenance"]
        common = SampleInfo(about["generator"], made["checkpoint"], made["seed"], -1, sampler=made["sampler"])
        digest = storage.folder_digest(candidates)
        return _Set(found.images, found.labels, raw.keys(candidates / CANDIDATES), None, common, about, digest)
    batch, infos, digest = load_candidates(candidates, spec, order.config)
    return _Set(batch.images, batch.labels, batch.keys, infos, SampleInfo(candidates.stem, "", 0, -1), {}, digest)


def _samples(
    whole: _Set, rows: Int64[np.ndarray, " n"], scores: pa.Table, report: GateReport, licence: str
) -> Iterator[tuple[Batch, list[SampleInfo]]]:
    """The rows with what the gate found of each."""
    signals = [name for name in FAMILIES if name in scores.column_names]
    beside = scores.select([*signals, *(n for n in ("nearest", "nearest_distance", "soft_label") if n in scores.column_names)])
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        keys = tuple(whole.keys[i] for i in part.tolist())
        infos = []
        for i, key, found in zip(part.tolist(), keys, beside.take(part).to_pylist(), strict=True):
            known = whole.infos[i] if whole.infos else whole.common
            infos.append(
                SampleInfo(
                    known.generator,
                    known.checkpoint,
                    known.seed,
                    known.index if whole.infos else int(key.rsplit("-", 1)[1]),
                    {name: found[name] for name in signals},
                    known.sampler,
                    licence or known.licence,
                    tuple(found.get("soft_label") or ()),
                    found["nearest"],
                    found["nearest_distance"],
                    report.dropped.get(key, ()),
                )
            )
        yield Batch(np.asarray(whole.images[part]), whole.labels[part], keys), infos


def _watched(chunks: Iterator[list[Encoded]], order: Order) -> Iterator[list[Encoded]]:
    for chunk in chunks:
        yield chunk
        order.progress.advance("export", len(chunk))


def _evidence(report: GateReport, decided: Decision | None) -> dict[str, Any]:
    """What the card says of gate and gain, as JSON types; nothing in it depends on how fast the machine was."""
    copies = sum(1 for why in report.dropped.values() if set(why) & set(COPY_REASONS))
    gate = {
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "notices": list(report.notices),
        "candidates": report.num_candidates,
        "kept": len(report.kept),
        "dropped": report.reason_counts(),
        "copy_rate": copies / max(1, report.num_candidates),
        "real_dropped": report.real_dropped,
        "extractor": report.extractor,
        "metrics": [
            {"name": m.name, "value": m.value, "real": m.reference, "excess": m.excess, "low": m.low, "high": m.high,
             "verdict": m.verdict}
            for m in report.metrics
        ],
    }  # fmt: skip
    if decided is None:
        return {"gate": gate}
    found: dict[str, Any] = {"gate": gate, "verdict": decided.verdict, "reasons": list(decided.reasons)}
    if decided.gain is not None:
        found["gain"] = _gain_evidence(decided.gain)
    return found


def _gain_evidence(report: GainReport) -> dict[str, Any]:
    pairs = [i for i in report.intervals if (i.arm, i.baseline) in report.decisive]
    exchange = next((e for e in report.curve.exchange if e.equivalent is not None), None) if report.curve else None
    return {
        "best_real": report.best_real,
        "best_synthetic": report.best_synthetic,
        "pairs": [
            {"arm": i.arm, "baseline": i.baseline, "difference": i.difference, "low": i.low, "high": i.high, "seeds": i.seeds}
            for i in pairs
        ],
        "exchange": exchange and {
            "arm": exchange.arm, "num_real": exchange.num_real, "equivalent": exchange.equivalent,
            "low": exchange.low, "high": exchange.high,
        },
        "networks": sum(row.networks for row in report.rows),
    }  # fmt: skip


def _plan(whole: _Set) -> dict[str, Any]:
    """What sampling needs beside the checkpoint, to make any of the samples again."""
    if not whole.about:
        return {}
    missing = [name for name in PLAN if name not in whole.about]
    if missing:
        raise DataError(f"candidates.json: made by an older synthgen (no {missing[0]!r} in it); draw the candidates again")
    return {name: whole.about[name] for name in PLAN}


def _provenance(whole: _Set, inputs: dict[str, str]) -> Provenance:
    """That of our candidates; for other tools' images what can be said."""
    if whole.about:
        return replace(Provenance(**whole.about["provenance"]), parents=inputs)
    return Provenance("", "", inputs, storage.code_version(), 0, "made by another tool", 0, "unknown", {})
