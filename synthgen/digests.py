"""sha256 of files, folders' entries, JSON and the code; JSON that vouches for itself; in words, how two JSON values differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from synthgen.errors import DataError

LOCK = ".lock"
LIBRARIES = ("torch", "numpy", "scikit-learn", "pytorch-lightning")
"""Those whose version can change the last bits of what is trained or computed."""


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_of(path: Path) -> dict[str, Any]:
    """What is written down of a file, so that it can be checked: bytes and sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def differing(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every file below `folder` that isn't as its entry (`entry_of`) says: missing, a link among them, or changed."""
    lines = []
    for name, entry in listed.items():
        path = folder / name
        if leads_out(name) or not is_plain_file(path):
            lines.append(f"missing {name!r}")
        elif not is_as(path, entry):
            lines.append(f"changed {name!r}")
    return lines


def is_as(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is as its entry says."""
    return path.stat().st_size == entry.get("bytes") and sha256_file(path) == entry.get("sha256")


def is_plain_file(path: Path) -> bool:
    """Whether a file stands there, and no link."""
    try:
        return path.is_file() and not path.is_symlink()
    except (OSError, ValueError):  # a name that no file can have
        return False


def entries(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Every file that a stage's manifest vouches for, its timing too: name -> entry."""
    return {**manifest["files"], **(manifest.get("timing") or {})}


def is_passing(name: str, beside: Collection[str] = ()) -> bool:
    """Whether a file of this name is part of no result: a lock, or what a kill left of an atomic file of one of the names."""
    left = re.fullmatch(r"\.(.+)\.\d+\.tmp", name)
    return name == LOCK or (left is not None and left.group(1) in beside)


def leads_out(name: str) -> bool:
    """Whether a path that a manifest gives isn't one of a file inside its folder."""
    return not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name


def sha256_json(data: Any) -> str:
    """sha256 of the canonical JSON form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


@cache
def code_version() -> str:
    """synthgen's version and a digest of its sources: a stage made by other code isn't taken for this code's."""
    from synthgen import __version__

    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (root, (root / "models").resolve()):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def library_versions(names: Collection[str] = LIBRARIES) -> dict[str, str]:
    """Of each library the version that is installed, as its package tells it ("2.13.0+cpu")."""
    return {name: importlib.metadata.version(name) for name in names}


def changes(old: Any, new: Any, where: str = "") -> dict[str, str]:
    """Differences of two JSON values: where -> in words."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {
            place: line
            for key in sorted({*old, *new})
            for place, line in changes(old.get(key), new.get(key), f"{where}.{key}" if where else str(key)).items()
        }
    same = json.dumps(old) == json.dumps(new)
    return {} if same else {where: f"{where} was {_short(old)}, is {_short(new)}"}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


SEAL = "sha256"
"""In the JSON of `storage.write_sealed`."""
UNSEALED = ("synthgen.stage/1",)
"""Schemas of before there were seals."""


def unsealed(text: str, where: str) -> Any:
    """What `storage.write_sealed` was given; JSON of another tool as it is.

    Raises:
        DataError: not JSON, or not one byte as it was written.
    """
    try:
        data = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        return data
    ours = str(data.get("schema")).startswith("synthgen.") and data.get("schema") not in UNSEALED
    if SEAL not in data and not ours:
        return data
    rest = {key: value for key, value in data.items() if key != SEAL}
    if SEAL not in data or text != as_text(data) or data[SEAL] != sha256_json(rest):
        raise DataError(f"{where}: differs from the sha256 in it: changed after it was written")
    return rest


def as_text(data: Any) -> str:
    """JSON as synthgen writes it."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _no_number(constant: str) -> None:
    """For `json.loads(parse_constant=...)`: NaN and Infinity aren't JSON."""
    raise ValueError(f"{constant} is no number")


def read_sealed(path: Path) -> Any:
    """Reads what `storage.write_sealed` wrote; raises as `unsealed`, and where there is no such file."""
    return unsealed(_text_of(path), str(path))


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(_text_of(path), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None


def _text_of(path: Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
