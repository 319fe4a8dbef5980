"""MANIFEST.json: what an export holds, with the sha256 of every file. Written last, so where it stands the export is whole."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict, get_args

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import card
from synthgen.types import ExportFile, Shard, ShardManifest, Verdict
from synthgen.types.fits import misfit

NAME = "MANIFEST.json"
NOT_OURS = {NAME, storage.STAGE_MANIFEST, storage.TIMING}
"""Files beside the shards that the manifest doesn't list."""


def write(folder: Path, manifest: ShardManifest) -> None:
    """Writes `MANIFEST.json`; every shard must stand already."""
    storage.write_sealed(folder / NAME, manifest.to_json())


def read(folder: Path) -> ShardManifest:
    """The manifest of an export, unchecked against its files (see `verify`).

    Raises:
        DataError: there is none, or it isn't one of ours.
    """
    path = folder / NAME
    if not folder.is_dir():
        elsewhere = "; what lies elsewhere `synthgen verify` alone reads: copy it here first" if ":/" in str(folder) else ""
        raise DataError(f"{folder}: no such folder{elsewhere}")
    if not path.is_file():
        raise DataError(
            f"{folder}: no {NAME}, so the export is unfinished or not synthgen's; run the export again "
            "(another tool's archive can be given as a .tar file)"
        )
    return parse(storage.read_sealed(path), str(path))


def parse(data: Any, where: str) -> ShardManifest:
    """The manifest out of its JSON form; raises DataError where it isn't one, or says what can't be."""
    try:
        manifest = ShardManifest.from_json(data, where)
        listed = Counter({shard.format: 0 for shard in manifest.shards})
        for shard in manifest.shards:
            listed[shard.format] += shard.num_samples
        outside = [file.path for file in everything(manifest) if storage.leads_out(file.path)]
        if manifest.plan:
            if misfitting := misfit(manifest.plan, _Plan, "plan"):
                raise ValueError(misfitting)
            counts = manifest.plan["plan"]["counts"].values()
            if min(counts) < 0 or len(counts) != manifest.spec.num_classes or manifest.provenance.chunk < 1:
                raise ValueError("a label plan or a chunk that can't be")
        if misfitting := misfit(manifest.evidence, card.Evidence, "evidence"):
            raise ValueError(misfitting)
        if manifest.verdict not in ("", *get_args(Verdict)):
            raise ValueError(f"verdict {manifest.verdict!r}")
    except (TypeError, LookupError, AttributeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: damaged ({type(error).__name__}: {error}); run the export again") from None
    if outside:
        raise DataError(f"{where}: the file {outside[0]!r} lies outside of the export")
    wrong = [f"{num} in {name}" for name, num in listed.items() if num != manifest.num_samples]
    if wrong:
        raise DataError(f"{where}: {manifest.num_samples} samples, but the shards list {' and '.join(wrong)}")
    return manifest


class _Counts(TypedDict):
    counts: dict[str, int]


class _Plan(TypedDict):
    """What sampling needs to make a sample again."""

    plan: _Counts
    sampling: dict[str, Any]
    precision: str


def listed(data: bytes) -> list[str]:
    """The files that a manifest's bytes list, itself left out; [] for what isn't a manifest."""
    try:
        return [file.path for file in everything(parse(storage.unsealed(data.decode(), NAME), NAME))]
    except (DataError, ValueError):
        return []


def paths(manifest: ShardManifest) -> list[str]:
    """Every file of an export, the manifest last: the order in which they may be copied."""
    return [*(file.path for file in everything(manifest)), NAME]


def everything(manifest: ShardManifest) -> list[Shard | ExportFile]:
    """Every file that the manifest lists."""
    return [*manifest.shards, *manifest.files]


def verify(folder: Path) -> ShardManifest:
    """The manifest, once every file has been checked against its sha256.

    Raises:
        DataError: as `read`; or files are missing, changed or not listed, each by its name.
    """
    manifest = read(folder)
    found = problems(folder, manifest)
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise DataError(f"{folder}: differs from its {NAME}: {shown}. Copy it again, or run the export again")
    return manifest


def problems(folder: Path, manifest: ShardManifest) -> list[str]:
    """Every file that is missing, changed or not listed; links count as missing."""
    listed = {file.path: {"bytes": file.num_bytes, "sha256": file.sha256} for file in everything(manifest)}
    lines, known = storage.differing(folder, listed), listed.keys() | NOT_OURS
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*names, *links]):
            found = (Path(root) / name).relative_to(folder).as_posix()
            if found not in known and name != storage.LOCK:
                lines.append(f"extra {found!r}")
    return lines
