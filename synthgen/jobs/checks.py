"""Is what stands there what was written? Exports, on this disk or elsewhere, and whole run folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import DataError, StorageError
from synthgen.shards import manifest
from synthgen.types import ShardManifest


def verify(place: str) -> dict[str, Any]:
    """Checks every byte of an export or of all stages of a run folder against the sha256 that was written down.

    Args:
        place: a folder, or a place that fsspec knows (s3://bucket/folder).

    Returns:
        what ("export" or "run"), files checked, samples (of an export), problems: one line each, [] if all is as written.

    Raises:
        DataError: neither an export nor a run folder.
    """
    if "://" in place:
        return _verify_elsewhere(place)
    folder = Path(place)
    if (folder / manifest.NAME).is_file():
        whole = manifest.read(folder)
        found = manifest.problems(folder, whole)
        return {
            "what": "export",
            "files": len(manifest.everything(whole)),
            "samples": whole.num_samples,
            "problems": list(dict.fromkeys(found + _stage_problems(folder, folder))),
        }
    stages = sorted({path.parent for path in folder.rglob(storage.STAGE_MANIFEST)}) if folder.is_dir() else []
    if not stages:
        raise DataError(
            f"{folder}: no {manifest.NAME} and no {storage.STAGE_MANIFEST} below it: neither an export nor a run folder"
        )
    problems, count = [], 0
    for stage in stages:
        count += len(storage.read_manifest(stage)["files"])
        problems += _stage_problems(folder, stage)
    problems += [
        f"unfinished {path.parent.relative_to(folder).as_posix()!r}"
        for path in sorted(folder.rglob(storage.ATTEMPT))
        if path.parent not in stages
    ]
    return {"what": "run", "files": count, "samples": None, "problems": problems}


def _stage_problems(root: Path, stage: Path) -> list[str]:
    """Every file of a stage that is missing, changed, or not of the stage."""
    if not (stage / storage.STAGE_MANIFEST).is_file():
        return []
    try:
        listed = storage.read_manifest(stage)["files"]
    except (DataError, StorageError) as error:
        return [str(error)]
    where = stage.relative_to(root)
    lines = []
    for name, entry in listed.items():
        path = stage / name
        if path.is_symlink() or not path.is_file():
            lines.append(f"missing {(where / name).as_posix()!r}")
        elif path.stat().st_size != entry["bytes"] or storage.sha256_file(path) != entry["sha256"]:
            lines.append(f"changed {(where / name).as_posix()!r}")
    for path in sorted(stage.rglob("*")):
        name = path.relative_to(stage).as_posix()
        ours = {storage.STAGE_MANIFEST, storage.TIMING, storage.LOCK}
        if path.is_file() and name not in listed and path.name not in ours and not path.name.startswith("."):
            lines.append(f"extra {(where / name).as_posix()!r}")
    return lines


def _verify_elsewhere(url: str) -> dict[str, Any]:
    sizes = storage.listing(url)
    if manifest.NAME not in sizes:
        raise DataError(f"{url}: no {manifest.NAME} there, so the export is unfinished or not synthgen's")
    with storage.fetched(url) as open_file:
        with open_file(manifest.NAME) as file:
            try:
                whole = ShardManifest.from_json(json.loads(file.read()), f"{url}/{manifest.NAME}")
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{url}/{manifest.NAME}: damaged ({type(error).__name__}: {error}); export again") from None
        lines = []
        for entry in manifest.everything(whole):
            if entry.path not in sizes:
                lines.append(f"missing {entry.path!r}")
                continue
            with open_file(entry.path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest != entry.sha256:
                lines.append(f"changed {entry.path!r}")
    known = {entry.path for entry in manifest.everything(whole)} | manifest.NOT_OURS
    lines += [f"extra {name!r}" for name in sorted(sizes) if name not in known]
    return {"what": "export", "files": len(known) - len(manifest.NOT_OURS), "samples": whole.num_samples, "problems": lines}
