"""MANIFEST.json: what an export holds, with the sha256 of every file. Written last, so where it stands the export is whole."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from synthgen import storage
from synthgen.errors import DataError
from synthgen.types import ExportFile, Shard, ShardManifest

NAME = "MANIFEST.json"
NOT_OURS = {NAME, storage.STAGE_MANIFEST, storage.TIMING}
"""Files beside the shards that the manifest doesn't list."""


def write(folder: Path, manifest: ShardManifest) -> None:
    """Writes `MANIFEST.json`; every shard must stand already."""
    storage.write_json(folder / NAME, manifest.to_json())


def read(folder: Path) -> ShardManifest:
    """The manifest of an export, unchecked against its files (see `verify`).

    Raises:
        DataError: there is none, or it isn't one of ours.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not path.is_file():
        raise DataError(
            f"{folder}: no {NAME}, so the export is unfinished or not synthgen's; run the export again "
            "(another tool's archive can be given as a .tar file)"
        )
    data = storage.read_json(path)
    try:
        manifest = ShardManifest.from_json(data, str(path))
        listed = Counter({shard.format: 0 for shard in manifest.shards})
        for shard in manifest.shards:
            listed[shard.format] += shard.num_samples
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); run the export again") from None
    wrong = [f"{num} in {name}" for name, num in listed.items() if num != manifest.num_samples]
    if wrong:
        raise DataError(f"{path}: {manifest.num_samples} samples, but the shards list {' and '.join(wrong)}")
    for file in everything(manifest):
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts or "\\" in file.path:
            raise DataError(f"{path}: the file {file.path!r} lies outside of the export")
    return manifest


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
    """Every file that is missing, changed or not listed; links count as changed."""
    lines = []
    for file in everything(manifest):
        path = folder / file.path
        if path.is_symlink() or not path.is_file():
            lines.append(f"missing {file.path!r}")
        elif path.stat().st_size != file.num_bytes or storage.sha256_file(path) != file.sha256:
            lines.append(f"changed {file.path!r}")
    listed = {file.path for file in everything(manifest)}
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = (Path(root) / name).relative_to(folder)
            if path.as_posix() not in listed | NOT_OURS and not name.startswith("."):
                lines.append(f"extra {path.as_posix()!r}")
    return lines
