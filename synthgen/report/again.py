"""Where a run comes from, and the commands that make it again or check it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from synthgen.report.evidence import Evidence
from synthgen.report.lineage import DIGEST_CHARS, MadeStage
from synthgen.types import Provenance

FILES_NAMED = 12
"""Of the files beside the shards; where there are more, the page counts them."""


def commands(evidence: Evidence) -> list[tuple[str, str]]:
    """(what it does, command), to be run from the folder that holds the run; none without a configuration."""
    if not evidence.config:
        return []
    name = evidence.name
    config, again = shlex.quote(f"{name}/config.yaml"), shlex.quote(f"{name}-again")
    folder = shlex.quote(name)
    if evidence.elsewhere:
        found = [
            ("judge the same images again, and measure the gain",
             f"synthgen gain --recipe {config} --real {folder} --candidates FOLDER --out {again}"),
        ]  # fmt: skip
    else:
        found = [
            ("make the whole run again, in another folder", f"synthgen run {config} --out {again}"),
            ("go on with this run, or check that its stages still hold", f"synthgen run {config} --out {folder}"),
        ]
    found.append(("check every byte of the run against what was written", f"synthgen verify {folder}"))
    key, export = _first_key(evidence), shlex.quote(f"{name}/shards")
    if key:
        found.append(
            ("make one sample of the export again and compare its pixels", f"synthgen replay {shlex.quote(key)} {export}")
        )
    found.append(("write this page and report.json again from the files of the run", f"synthgen report {folder}"))
    return found


def _first_key(evidence: Evidence) -> str:
    """Key of a sample that was exported and can be drawn again; "" if there is none."""
    manifest, best = evidence.manifest, evidence.generator(evidence.verdict.get("best_generator"))
    if evidence.elsewhere or not manifest or not manifest.provenance.checkpoint or not best or not best.gate:
        return ""
    return next((key for key in best.gate.kept if key not in manifest.dropped), "")


def provenance(evidence: Evidence) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(title, rows of (what, figure, whether it is a digest)): the data, each generator's images and the export."""
    blocks = []
    spec = evidence.spec or (evidence.manifest.spec if evidence.manifest else None)
    if spec is not None:
        shape = f"{spec.image_shape[2]}x{spec.image_shape[1]} pixels, {'RGB' if spec.image_shape[0] == 3 else 'grey'}"
        rows = [
            ("name", spec.name, False),
            ("images", f"{spec.num_classes} classes, {shape}", False),
            ("fingerprint of keys, labels and pixels", spec.fingerprint[:16], True),
        ]
        if evidence.lineage.opened:
            rows.append(("test split opened", str(evidence.lineage.opened.get("at", "")), False))
            rows.append(("after", str(evidence.lineage.opened.get("after", "")), False))
        blocks.append(("The data", rows))
    drawn, best = evidence.lineage.drawn, evidence.verdict.get("best_generator")
    for name, about in sorted(drawn.items(), key=lambda item: item[0] != best):
        blocks.append((f"Images of {name}", _drawn(about)))
    manifest = evidence.manifest
    if manifest and not evidence.lineage.drawn:
        blocks.append(("The exported images", _drawn(manifest.provenance)))
    return blocks


def exported(evidence: Evidence) -> list[tuple[str, str]]:
    """(what, figure) of the export; empty without one."""
    manifest = evidence.manifest
    if manifest is None:
        return []
    beside = ", ".join(file.path for file in manifest.files)
    rows = [
        ("samples", f"{manifest.num_samples:,}"),
        ("formats", ", ".join(dict.fromkeys(shard.format for shard in manifest.shards))),
        ("licence", manifest.licence or "not told (export.licence)"),
        (
            "files beside the shards",
            beside if len(manifest.files) <= FILES_NAMED else f"{len(manifest.files):,}, in MANIFEST.json",
        ),
        ("samples withdrawn", f"{len(manifest.dropped):,}" if manifest.dropped else ""),
    ]
    return [row for row in rows if row[1]]


def stages(evidence: Evidence) -> list[tuple[MadeStage, str, list[tuple[str, str]]]]:
    """(stage, short digest, its inputs with their short digests)."""
    return [
        (stage, stage.digest[:DIGEST_CHARS], [(name, digest[:DIGEST_CHARS]) for name, digest in stage.inputs.items()])
        for stage in evidence.lineage.stages
    ]


def _drawn(about: Provenance | Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    said = about.__dict__ if isinstance(about, Provenance) else about
    rows = [
        ("configuration", str(said.get("config") or "")[:16], True),
        ("checkpoint", str(said.get("checkpoint") or "")[:16] or "another tool's", True),
        ("synthgen", str(said.get("code") or ""), False),
        ("seed of sampling", str(said.get("seed", "")), False),
        ("sampler", str(said.get("sampler") or ""), False),
        ("chunk", str(said.get("chunk", "")), False),
        ("device", str(said.get("device") or ""), False),
    ]
    libraries = said.get("libraries")
    rows += [(str(name), str(version), False) for name, version in (libraries or {}).items()]
    return [row for row in rows if row[1]]
