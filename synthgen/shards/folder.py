"""Image folder: class/key.png, and metadata.jsonl with what is said of each sample, as the library `datasets` reads it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import orjson

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec
from synthgen.shards.encode import CHUNK, Encoded, Member, about_from, about_json
from synthgen.types import DatasetSpec, Shard

FOLDER = "folder"
METADATA = "metadata.jsonl"
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""Names that Windows keeps for devices."""
LONGEST = 200
"""Letters of a class's folder: file systems take 255 bytes, and the class's number may follow."""


def class_folders(names: Sequence[str]) -> list[str]:
    """Classes as names of folders that every file system keeps apart.

    Letters, digits, '-', '_' and inner spaces stay, everything else is percent-encoded. The class's number is added where two
    would be one without regard to case, where a name is one that Windows reserves, and where one had to be cut short.
    """
    whole = [_encoded(name) for name in names]
    plain = [re.sub("%.?$", "", name[:LONGEST]).rstrip() if len(name) > LONGEST else name for name in whole]
    often = Counter(name.casefold() for name in plain)
    numbered = [f"{name}-{number}" for number, name in enumerate(plain)]
    chosen = [
        numbered[number] if often[name.casefold()] > 1 or name.casefold() in RESERVED or name != whole[number] else name
        for number, name in enumerate(plain)
    ]
    return chosen if len({name.casefold() for name in chosen}) == len(names) else numbered


def _encoded(name: str) -> str:
    safe = quote(name, safe=" -_").replace("~", "%7E").replace(".", "%2E")
    inner = safe.strip(" ")
    before, after = len(safe) - len(safe.lstrip(" ")), len(safe) - len(safe.rstrip(" ")) if inner else 0
    return "%20" * before + inner + "%20" * after


@contextmanager
def shard(folder: Path, number: int, spec: DatasetSpec) -> Iterator[Callable[[Sequence[Encoded]], list[str]]]:
    """The one folder of all samples (`number` is 0); each call returns the paths that it has written to."""
    classes = class_folders(spec.class_names)
    with ExitStack() as stack:
        put_file = stack.enter_context(storage.loose(folder / FOLDER))
        lines = stack.enter_context(storage.atomic(folder / FOLDER / METADATA))

        def put(samples: Sequence[Encoded]) -> list[str]:
            paths = []
            for sample in samples:
                name = f"{classes[sample.label]}/{sample.key}.{sample.extension}"
                put_file(name, sample.file)
                lines.write(b'{"file_name":%b,%b\n' % (orjson.dumps(name), about_json(sample, spec)[1:]))
                paths.append(f"{FOLDER}/{name}")
            return paths

        yield put


def index(folder: Path, shards: Sequence[Shard], spec: DatasetSpec) -> list[str]:
    """What is said of the samples stands beside them already."""
    return [f"{FOLDER}/{METADATA}"] if shards else []


def read(path: Path, channels: int | None = None) -> Iterator[Member]:
    """The samples that a `metadata.jsonl` of `shard` lists.

    Raises:
        DataError: not readable, or a file that isn't there.
    """
    try:
        with open(path, "rb") as lines:
            while rows := list(islice(lines, CHUNK)):
                yield from _members(path, rows, channels)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror or error})") from None


def _members(path: Path, rows: Sequence[bytes], channels: int | None) -> Iterator[Member]:
    known = [about_from(line, f"{path}") for line in rows]
    names = [str(row.get("file_name", "")) for row in known]
    for name in names:
        if storage.leads_out(name):
            raise DataError(f"{path}: the file {name!r} lies outside of the folder")
        if not (path.parent / name).is_file():
            raise DataError(f"{path}: {name!r} isn't there, or is no file; copy or download it again")
    files = [(path.parent / name).read_bytes() for name in names]
    images = codec.decoded(files, lambda i: str(path.parent / names[i]), channels)
    for row, name, file, image in zip(known, names, files, images, strict=True):
        if not isinstance(row.get("key"), str) or type(row.get("label")) is not int:
            raise DataError(f"{path}: {name!r} has no key or no label")
        yield Member(row["key"], image, row["label"], row, file, name.rpartition(".")[2])
