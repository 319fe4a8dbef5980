"""Is what stands there what was written? Exports, on this disk or elsewhere, and whole run folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypedDict

from synthgen import elsewhere, extraction, logs, storage
from synthgen.errors import DataError, StorageError
from synthgen.gain.cells import Trained
from synthgen.jobs.finished import FOLDER, OPENED, openings
from synthgen.jobs.gates import CACHE
from synthgen.jobs.reports import RUN, RUN_SCHEMA, TOLD
from synthgen.shards import manifest
from synthgen.types.fits import misfit


def verify(place: str) -> dict[str, Any]:
    """Checks every byte of an export or of a run folder against the sha256 that was written down.

    Of a run: all stages, verdict, settings, report, and what it keeps to save time (`features-cache/`, `gain-networks/`), each
    entry of which has its sha256 in it; those may also go. Logs (`logs/`, `wandb/`) are other tools' files and no result.

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
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / manifest.NAME).is_file():
        whole = manifest.read(folder)
        known = {file.path for file in manifest.everything(whole)}
        problems = manifest.problems(folder, whole)
        made = _made(folder, problems) if (folder / storage.STAGE_MANIFEST).is_file() else {}  # it knows the manifest itself
        problems += storage.differing(folder, {name: entry for name, entry in made.items() if name not in known})
        return {"what": "export", "files": len(known), "samples": whole.num_samples, "problems": problems}
    stages = sorted({path.parent for path in folder.rglob(storage.STAGE_MANIFEST)})
    if not stages and not (folder / RUN).exists() and not (folder / storage.ATTEMPT).exists():
        raise DataError(
            f"{folder}: no {manifest.NAME} and no {storage.STAGE_MANIFEST} below it: neither an export nor a run folder"
        )
    problems = []
    listed = _told(folder, stages, problems)
    problems += storage.differing(folder, listed) + _kept(folder) + _beside(folder, stages, set(listed))
    for stage in stages:
        where = stage.relative_to(folder)
        made = {(where / name).as_posix(): entry for name, entry in _made(stage, problems).items()}
        problems += storage.differing(folder, made) + _extra(folder, stage, made)
        listed |= made
    begun = [path.parent for path in sorted(folder.rglob(storage.ATTEMPT)) if path.parent not in stages]
    problems += ["unfinished: run the same command again" for path in begun if path == folder]
    problems += [f"unfinished {path.relative_to(folder).as_posix()!r}" for path in begun if path != folder]
    return {"what": "run", "files": len(listed), "samples": None, "problems": problems}


def _made(stage: Path, problems: list[str]) -> dict[str, Any]:
    """The files that a stage lists; where it can't be read, that is a problem and there are none."""
    try:
        return storage.entries(storage.read_manifest(stage))
    except (DataError, StorageError) as error:
        problems.append(str(error))
        return {}


def _told(folder: Path, stages: list[Path], problems: list[str]) -> dict[str, Any]:
    """What a run tells outside of its stages: verdict, settings, report. What is gone of it, and of its stages, is a problem."""
    if not (folder / RUN).is_file():
        problems += [f"unfinished: no {RUN}"] if (folder / "verdict.json").is_file() else []
        return {}
    try:
        found = storage.read_sealed(folder / RUN)
    except DataError:
        found = None
    if not isinstance(found, dict) or found.get("schema") != RUN_SCHEMA or misfit(found, _Run):
        problems.append(f"changed {RUN!r}")
        return {}
    gone = [f"{name}/{storage.STAGE_MANIFEST}" for name in found["stages"] if folder / name not in stages]
    gone += [f"{FOLDER}/{OPENED}"] if found["opened"] and not (folder / FOLDER / OPENED).is_file() else []
    problems += [f"missing {name!r}" for name in gone]
    return dict(found["files"])


class _Run(TypedDict):
    schema: str
    files: dict[str, dict[str, Any]]
    stages: list[str]
    opened: bool


def _kept(folder: Path) -> list[str]:
    """What is damaged of the networks and features that are kept to go on from; it would be made again when it is needed."""
    damaged = [path for path in sorted(folder.rglob(f"{CACHE}/*.safetensors")) if not extraction.is_entry(path)]
    for path in sorted(folder.rglob(f"{FOLDER}/*/*.safetensors")):
        try:
            Trained.from_bytes(path.read_bytes())
        except (OSError, DataError):
            damaged.append(path)
    for path in folder.rglob(f"{FOLDER}/{OPENED}"):
        try:
            openings(path)
        except DataError:
            damaged.append(path)
    return [f"changed {path.relative_to(folder).as_posix()!r}" for path in damaged]


def _beside(folder: Path, stages: list[Path], listed: set[str]) -> list[str]:
    """Files of a run folder that nothing in it speaks of."""
    known = {RUN, *TOLD, *listed, storage.ATTEMPT}
    beside = {Path(each).name for each in known}
    inner = [stage.relative_to(folder).as_posix() + "/" for stage in stages if stage != folder]
    aside = tuple(f"{name}/" for name in (logs.FOLDER, "wandb", FOLDER, CACHE))
    if folder in stages or not (folder / RUN).is_file():  # a stage tells of its own; without run.json the folder isn't one run's
        return []
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if _is_entry(path)]
    unfinished = [path.parent.relative_to(folder).as_posix() + "/" for path in folder.rglob(storage.ATTEMPT)]
    return [
        f"extra {name!r}"
        for name in names
        if name not in known
        and not name.startswith((*inner, *unfinished, *aside))
        and not storage.is_passing(Path(name).name, beside)
    ]


def _extra(folder: Path, stage: Path, listed: dict[str, Any]) -> list[str]:
    """Every file in a stage that isn't of it."""
    ours = {stage / storage.STAGE_MANIFEST, stage / storage.TIMING}
    files = [path for path in sorted(stage.rglob("*")) if _is_entry(path) and path not in ours and path.name != storage.LOCK]
    names = [path.relative_to(folder).as_posix() for path in files]
    return [f"extra {name!r}" for name in names if name not in listed]


def _is_entry(path: Path) -> bool:
    """Whether it is a file, or a link or special file that stands in the place of one."""
    return path.is_symlink() or not path.is_dir()


def _verify_elsewhere(url: str) -> dict[str, Any]:
    sizes = elsewhere.listing(url)
    if manifest.NAME not in sizes:
        raise DataError(f"{url}: no {manifest.NAME} there, so the export is unfinished or not synthgen's")
    with elsewhere.fetched(url) as open_file:
        with open_file(manifest.NAME) as file:
            name = f"{url}/{manifest.NAME}"
            try:
                found = storage.unsealed(file.read().decode(), name)
            except (DataError, UnicodeError) as error:
                raise DataError(f"{error}; export again") from None
            whole = manifest.parse(found, name)
        lines, known = [], manifest.everything(whole)
        for entry in known:
            if entry.path not in sizes:
                lines.append(f"missing {entry.path!r}")
                continue
            with open_file(entry.path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest != entry.sha256:
                lines.append(f"changed {entry.path!r}")
    names = {entry.path for entry in known} | manifest.NOT_OURS
    lines += [f"extra {name!r}" for name in sorted(sizes) if name not in names]
    return {"what": "export", "files": len(known), "samples": whole.num_samples, "problems": lines}
