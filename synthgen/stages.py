"""What `stage.json` says of a finished stage: read, checked against the files, compared with other work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthgen.digests import changes, entries, is_as, is_plain_file, leads_out, read_json, read_sealed, sha256_json
from synthgen.errors import DataError, StorageError
from synthgen.types.fits import misfit

STAGE_MANIFEST = "stage.json"
TIMING = "timing.json"
ENTRIES = dict[str, dict[str, Any]]
STAGE_FIELDS: dict[str, Any] = {"stage": str, "config": dict[str, Any], "inputs": dict[str, str], "code": str}
STAGE_FIELDS |= {"files": ENTRIES, "timing": ENTRIES | None, "libraries": dict[str, str] | None}
STAGE_SCHEMA = "synthgen.stage/2"
STAGE_SCHEMAS = (STAGE_SCHEMA, "synthgen.stage/1")
"""Which can be read: /1 has no seal and doesn't vouch for the timing."""


def apart(made: Mapping[str, Any], identity: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What keeps two pieces of work from being the same, in words: settings, inputs and code; and versions of libraries.

    Args:
        made: what was written down of the one (more may stand in it).
        identity: of the other.
    """
    found = changes({key: made.get(key) for key in identity}, identity)
    ours = [line for place, line in found.items() if place.partition(".")[0] != "libraries"]
    return ours, [line for line in found.values() if line not in ours]


def seconds(folder: Path) -> float:
    """Wall seconds that a finished stage took when it was made."""
    return float(read_json(folder / TIMING)["seconds"])


def folder_digest(folder: Path) -> str:
    """One sha256 for the contents of a finished stage folder.

    Raises:
        StorageError: the folder has no `stage.json`: unfinished, or not synthgen's.
    """
    return sha256_json(read_manifest(folder)["files"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """`stage.json` of a finished stage folder.

    Raises:
        StorageError: there is none, or it is another tool's.
    """
    manifest = folder / STAGE_MANIFEST
    if not manifest.is_file():
        raise StorageError(
            f"{folder}: no {STAGE_MANIFEST}, so it is unfinished or not a folder of synthgen; run the job that makes it again"
        )
    try:
        data = read_sealed(manifest)
    except DataError as error:
        raise StorageError(f"{error}; delete {folder} and run the command again") from None
    if not isinstance(data, dict) or data.get("schema") not in STAGE_SCHEMAS:
        raise StorageError(
            f"{manifest}: not written by synthgen (its schema is none of {', '.join(STAGE_SCHEMAS)}); choose another folder"
        )
    wrong = [line for name, kind in STAGE_FIELDS.items() if (line := misfit(data.get(name), kind, name))]
    wrong = wrong or [f"the file {name!r} lies outside of the folder" for name in entries(data) if leads_out(name)]
    if wrong:
        raise StorageError(f"{manifest}: damaged: {wrong[0]}; delete {folder} and run the command again")
    return data


def check_folder(folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Checks every file of a finished stage against its sha256.

    Raises:
        StorageError: a file is missing or changed; its name is in the message.
    """
    for name, entry in entries(manifest or read_manifest(folder)).items():
        path = folder / name
        if not is_plain_file(path):
            raise StorageError(f"{path}: listed in {STAGE_MANIFEST} but missing; delete {folder} and run the command again")
        if not is_as(path, entry):
            raise StorageError(f"{path}: differs from its sha256 in {STAGE_MANIFEST}; delete {folder} and run the command again")
