"""Kept candidates -> shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from synthgen import storage
from synthgen.errors import DataError
from synthgen.gate.signals import FAMILIES
from synthgen.jobs.candidates import load_candidates
from synthgen.jobs.gates import check_judged, load_gate
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.shards import manifest, parquet, table, webdataset
from synthgen.types import Provenance, Shard, ShardManifest


def export(order: Order, split: Split, candidates: Path, judged: Path, out: Path) -> None:
    """Kept candidates -> shards with MANIFEST.json, byte-identical when written again.

    Raises:
        DataError: the gate kept nothing.
    """
    config = order.config
    batch, infos, digest = load_candidates(candidates, split.spec, config)
    check_judged(judged, split, digest)
    inputs = {"split": split.digest, "candidates": digest, "gate": storage.folder_digest(judged)}
    with order.stage(out, "export", order.section("export"), inputs) as work:
        if not work.done:
            report = load_gate(judged)
            kept = set(report.kept)
            rows = np.array([i for i, key in enumerate(batch.keys) if key in kept], dtype=np.int64)
            if not len(rows):
                raise DataError(f"{judged}: the gate kept none of {len(batch)} candidates, so there is nothing to export")
            scores = table.read(judged / "scores.parquet")
            signals = [name for name in (*FAMILIES, "nearest_distance") if name in scores]
            chosen = batch.take(rows)
            known = [replace(infos[i], scores={name: float(scores[name][i]) for name in signals}) for i in rows.tolist()]
            order.progress.start("export", len(config.export.formats))
            shards: list[Shard] = []
            for form in config.export.formats:
                if form == "webdataset":
                    shards += webdataset.write(out, [(chosen, known)], split.spec, config.export.shard_size)
                else:
                    shards += parquet.write(out, [(chosen, known)], split.spec, config.export.shard_size, len(chosen))
                order.progress.advance("export")
            made = _provenance(candidates, inputs)
            counts = np.bincount(chosen.labels, minlength=split.spec.num_classes)
            manifest.write(
                out,
                ShardManifest(
                    spec=split.spec,
                    shards=tuple(shards),
                    num_samples=len(chosen),
                    class_counts=dict(zip(split.spec.class_names, counts.tolist(), strict=True)),
                    gate_verdict=report.verdict,
                    provenance=made,
                ),
            )
    whole = manifest.read(out)
    order.progress.finish("export", f"{whole.num_samples} samples in {len(whole.shards)} shards, {storage.seconds(out):.1f} s")


def _provenance(candidates: Path, inputs: dict[str, str]) -> Provenance:
    """That of our candidates; for other tools' images what can be said."""
    path = candidates / "candidates.json"
    if path.is_file():
        return replace(Provenance(**storage.read_json(path)["provenance"]), parents=inputs)
    return Provenance("", "", inputs, storage.code_version(), 0, "made by another tool", 0, "unknown", {})
