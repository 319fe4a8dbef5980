"""Is what stands there what was written? Exports, on this disk or elsewhere, and whole run folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from synthgen import elsewhere, storage
from synthgen.errors import DataError, StorageError
from synthgen.jobs.reports import RUN
from synthgen.shards import manifest


def verify(place: str) -> dict[str, Any]:
    """Checks every byte of an export or of a run folder against the sha256 that was written down.

    Of a run: all stages, verdict, settings and report. Its caches (`features-cache/`, `gain-networks/`) check themselves.

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
    problems, count = _told_problems(folder), 0
    if (folder / RUN).is_file():
        count += len(storage.read_json(folder / RUN).get("files", {}))
    for stage in stages:
        count += len(storage.read_manifest(stage)["files"])
        problems += _stage_problems(folder, stage)
    problems += [
        f"unfinished {path.parent.relative_to(folder).as_posix()!r}"
        for path in sorted(folder.rglob(storage.ATTEMPT))
        if path.parent not in stages
    ]
    return {"what": "run", "files": count, "samples": None, "problems": problems}


def _told_problems(folder: Path) -> list[str]:
    """What a run tells outside of its stages: verdict, settings, report."""
    if not (folder / RUN).is_file():
        return [f"unfinished: no {RUN}"] if (folder / "verdict.json").is_file() else []
    found = storage.read_json(folder / RUN)
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        return [f"changed {RUN!r}"]
    return _differing(folder, found["files"], Path())


def _differing(folder: Path, listed: dict[str, Any], where: Path) -> list[str]:
    """Every file that is missing or changed."""
    lines = []
    for name, entry in listed.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            lines.append(f"missing {(where / name).as_posix()!r}")
        elif path.stat().st_size != entry["bytes"] or storage.sha256_file(path) != entry["sha256"]:
            lines.append(f"changed {(where / name).as_posix()!r}")
    return lines


def _stage_problems(root: Path, stage: Path) -> list[str]:
    """Every file of a stage that is missing, changed, or not of the stage."""
    if not (stage / storage.STAGE_MANIFEST).is_file():
        return []
    try:
        listed = storage.read_manifest(stage)["files"]
    except (DataError, StorageError) as error:
        return [str(error)]
    where = stage.relative_to(root)
    ours = {storage.STAGE_MANIFEST, storage.TIMING}
    lines = _differing(stage, listed, where)
    for path in sorted(stage.rglob("*")):
        name = path.relative_to(stage).as_posix()
        if path.is_file() and name not in listed and name not in ours and not storage.is_passing(path.name):
            lines.append(f"extra {(where / name).as_posix()!r}")
    return lines


def _verify_elsewhere(url: str) -> dict[str, Any]:
    sizes = elsewhere.listing(url)
    if manifest.NAME not in sizes:
        raise DataError(f"{url}: no {manifest.NAME} there, so the export is unfinished or not synthgen's")
    with elsewhere.fetched(url) as open_file:
        with open_file(manifest.NAME) as file:
            try:
                found = json.loads(file.read())
            except ValueError as error:
                raise DataError(f"{url}/{manifest.NAME}: not readable as JSON ({error}); export again") from None
            whole = manifest.parse(found, f"{url}/{manifest.NAME}")
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
