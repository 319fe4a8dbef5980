"""WebDataset: tar archives in which the files of one key are a sample: key.png, key.cls, key.json.

Written with the standard library's tarfile and fixed headers (no date, owner or PAX record): the same samples give the
same bytes. webdataset's own TarWriter adds a header with a date to each member unless told otherwise, and imports torch.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shapes import UInt8
from synthgen.shards.encode import Encoded, Samples, chunks, decode_image, encoded, scores_json
from synthgen.types import DatasetSpec, Shard

FOLDER = "webdataset"
MAX_MEMBER_BYTES = 256 * 2**20
MAX_MEMBERS = 50_000_000


def write(folder: Path, samples: Samples, spec: DatasetSpec, shard_size: int) -> list[Shard]:
    """Writes `webdataset/synthgen-000000.tar` and so on, at most `shard_size` samples each; [] for no samples.

    Raises:
        DataError: see `encode.encoded`.
    """
    shards = []
    for number, chunk in enumerate(chunks(encoded(samples, spec), shard_size)):
        name = f"{FOLDER}/synthgen-{number:06d}.tar"
        with storage.atomic(folder / name) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for sample in chunk:
                _add(tar, f"{sample.key}.png", sample.png)
                _add(tar, f"{sample.key}.cls", str(sample.label).encode())
                _add(tar, f"{sample.key}.json", json.dumps(_about(sample, spec), ensure_ascii=False, allow_nan=False).encode())
        path = folder / name
        shards.append(Shard(name, "webdataset", len(chunk), path.stat().st_size, storage.sha256_file(path)))
    return shards


class Member(NamedTuple):
    """One sample as it stands in an archive."""

    key: str
    image: UInt8[np.ndarray, "c h w"]
    label: int | str
    about: dict[str, Any]


def read(path: Path) -> Iterator[Member]:
    """The samples of a tar archive, ours or another tool's: an image (png, jpg, jpeg) and a label (cls, or json).

    The label of a json is its "label", "cls", "class_name" or "class": a number, or a class name. A '/' in a key becomes
    '-'. Nothing is unpacked to disk or unpickled, and nothing but images, labels and JSON is looked at.

    Raises:
        DataError: damaged, a member that is no plain file, a name with '..', too large, or a sample without its label.
    """
    parts: dict[str, bytes] = {}
    current = None
    for name, data in _files(path):
        folder, slash, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        if not stem or not extension or stem.startswith("__"):
            continue  # no sample's file, to webdataset neither: README, .DS_Store, __index__.json
        key = (folder + slash + stem).replace("/", "-")
        if key != current and parts:
            yield _sample(path, str(current), parts)
            parts = {}
        current = key
        if extension.lower() in parts:
            raise DataError(f"{path}: {name!r} stands in it twice")
        parts[extension.lower()] = data
    if parts:
        yield _sample(path, str(current), parts)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # mtime 0, owner 0, no names
    header.size, header.mode = len(data), 0o644
    tar.addfile(header, io.BytesIO(data))


def _about(sample: Encoded, spec: DatasetSpec) -> dict[str, Any]:
    return {
        "key": sample.key,
        "label": sample.label,
        "class_name": spec.class_names[sample.label],
        "synthetic": True,
        "generator": sample.info.generator,
        "checkpoint": sample.info.checkpoint,
        "seed": sample.info.seed,
        "index": sample.info.index,
        "scores": scores_json(sample.info.scores),
    }


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each plain file, after its header was checked."""
    try:
        with tarfile.open(path, "r:") as tar:
            for number, member in enumerate(tar):
                if member.isdir():
                    continue
                _check_member(path, member, number)
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if len(data) != member.size:
                    raise DataError(f"{path}: cut off inside {member.name!r}; copy or download it again")
                yield member.name, data
            _check_end(path, tar.offset)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: not readable as a tar archive ({error})") from None


def _check_member(path: Path, member: tarfile.TarInfo, number: int) -> None:
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: member {member.name!r} is a link or a special file; only plain files are read")
    if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name or "\0" in member.name:
        raise DataError(f"{path}: member {member.name!r} has a path that leads out of the archive")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{path}: member {member.name!r} has {member.size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read")
    if number >= MAX_MEMBERS:
        raise DataError(f"{path}: more than {MAX_MEMBERS:,} members")


def _check_end(path: Path, offset: int) -> None:
    """tarfile takes a damaged header, and the end of the file, for the end of the archive."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path}: damaged or cut off after {offset:,} bytes; copy or download it again")


def _sample(path: Path, key: str, parts: dict[str, bytes]) -> Member:
    where = f"{path}: sample {key!r}"
    images = [extension for extension in ("png", "jpg", "jpeg") if extension in parts]
    if len(images) != 1:
        raise DataError(f"{where}: {len(images)} images (.png, .jpg) among its files {sorted(parts)}, expected 1")
    about: Any = {}
    if "json" in parts:
        try:
            about = json.loads(parts["json"])
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise DataError(f"{where}: its .json isn't a JSON object")
    return Member(key, decode_image(parts[images[0]], where), _label(where, parts, about), about)


def _label(where: str, parts: dict[str, bytes], about: dict[str, Any]) -> int | str:
    if "cls" in parts:
        text = parts["cls"][:1000].decode("utf-8", "replace").strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
    for field in ("label", "cls", "class_name", "class"):
        value = about.get(field)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value
    raise DataError(f"{where}: no label: neither a .cls nor a .json with 'label', 'cls', 'class_name' or 'class'")
