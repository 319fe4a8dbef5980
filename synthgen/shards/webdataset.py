"""WebDataset: tar archives in which the files of one key are a sample: key.png (or webp), key.cls, key.json.

Headers are fixed (no date, owner or PAX record): the same samples give the same bytes. webdataset's own TarWriter adds a
header with a date to each member unless told otherwise. `index.json` beside the archives is what webdataset's `wids` reads.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec
from synthgen.shards.encode import CHUNK, Encoded, Member, about_from, about_json
from synthgen.types import DatasetSpec, Shard

FOLDER = "webdataset"
MAX_MEMBER_BYTES = 256 * 2**20
MAX_MEMBERS = 50_000_000
BLOCK = tarfile.BLOCKSIZE
AT_ONCE = 32
"""Samples that are written in one go: some 200 kB of 32x32 images, which the processor's cache holds."""
IMAGES = ("png", "webp", "jpg", "jpeg")


def path_of(number: int) -> str:
    """Where the archive of a number lies in the export."""
    return f"{FOLDER}/synthgen-{number:06d}.tar"


@contextmanager
def shard(folder: Path, number: int, spec: DatasetSpec) -> Iterator[Callable[[Sequence[Encoded]], list[str]]]:
    """An archive that takes samples until it is closed; each call returns the paths that it has written to."""
    name = path_of(number)
    with storage.atomic(folder / name) as file:

        def put(samples: Sequence[Encoded]) -> list[str]:
            for start in range(0, len(samples), AT_ONCE):
                pieces: list[bytes] = []
                for sample in samples[start : start + AT_ONCE]:
                    text = about_json(sample, spec)
                    _add(pieces, sample.key, ((sample.extension, sample.file), ("cls", b"%d" % sample.label), ("json", text)))
                file.write(b"".join(pieces))
            return [name]

        yield put
        file.write(bytes(2 * BLOCK))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def index(folder: Path, shards: Sequence[Shard], spec: DatasetSpec) -> list[str]:
    """Writes the list of archives that `wids.ShardListDataset` reads; returns the paths written."""
    listed = [{"url": Path(s.path).name, "nsamples": s.num_samples, "filesize": s.num_bytes, "sha256": s.sha256} for s in shards]
    name = f"{FOLDER}/index.json"
    storage.write_json(
        folder / name, {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": spec.name, "shardlist": listed}
    )
    return [name]


def read(path: Path, channels: int | None = None) -> Iterator[Member]:
    """The samples of a tar archive, ours or another tool's: an image (png, webp, jpg, jpeg) and a label (cls, or json).

    The label of a json is its "label", "cls", "class_name" or "class": a number, or a class name. A '/' in a key becomes
    '-'. Nothing is unpacked to disk or unpickled, and nothing but images, labels and JSON is looked at.

    Raises:
        DataError: damaged, a member that is no plain file, a name with '..', too large, or a sample without its label.
    """
    waiting: list[tuple[str, dict[str, bytes]]] = []
    for sample in _samples(path):
        waiting.append(sample)
        if len(waiting) == CHUNK:
            yield from _decoded(path, waiting, channels)
            waiting = []
    yield from _decoded(path, waiting, channels)


# Writing

_TEMPLATE = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
_CHECKSUM = slice(148, 156)
_TEMPLATE[:100], _TEMPLATE[124:136], _TEMPLATE[_CHECKSUM] = bytes(100), bytes(12), b" " * 8
_SUM = sum(_TEMPLATE)
_AFTER_NAME, _AFTER_SIZE, _AFTER_SUM = bytes(_TEMPLATE[100:124]), bytes(_TEMPLATE[136:148]), bytes(_TEMPLATE[156:])
_ZEROS = bytes(BLOCK)


def _add(pieces: list[bytes], key: str, files: Iterable[tuple[str, bytes]]) -> None:
    """A sample's files: header, contents, padding each. As `tarfile` writes them with mtime 0, owner 0 and no names."""
    plain = key.encode()
    total = isal_zlib.adler32(plain) & 0xFFFF  # see `_plain`: here the sum is less than 65521
    short = len(plain) < 90 and key.isascii()
    for extension, data in files:
        if short:
            end, middle, base = _fields(extension, len(data))
            pieces += ((plain + end).ljust(100, b"\0"), middle, _sum_field(total + base), data, _ZEROS[: -len(data) % BLOCK])
        else:
            pieces += (_long_header(f"{key}.{extension}", len(data)), data, _ZEROS[: -len(data) % BLOCK])


@lru_cache(8192)
def _fields(extension: str, size: int) -> tuple[bytes, bytes, int]:
    """The end of the name, what stands between name and checksum, and the sum of both and what is the same always, less 1."""
    end, field = f".{extension}".encode(), b"%011o" % size
    return end, b"".join((_AFTER_NAME, field, b"\0", _AFTER_SIZE)), _SUM + sum(end) + sum(field) - 1


@lru_cache(8192)
def _sum_field(total: int) -> bytes:
    """What stands from the checksum on."""
    return b"%06o\0 " % total + _AFTER_SUM


def _long_header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header.tobuf(tarfile.PAX_FORMAT)


# Reading


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files by extension of each sample."""
    parts: dict[str, bytes] = {}
    current = None
    for name, data in _files(path):
        folder, slash, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        if not stem or not extension or stem.startswith("__"):
            continue  # no sample's file, to webdataset neither: README, .DS_Store, __index__.json
        extension = extension.lower()
        key = (folder + slash + stem).replace("/", "-") if slash else stem
        if key != current and parts:
            yield str(current), parts
            parts = {}
        current = key
        if extension in parts:
            raise DataError(f"{path}: {name!r} stands in it twice")
        parts[extension] = data
    if parts:
        yield str(current), parts


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and contents of each plain file, after its header was checked."""
    try:
        with open(path, "rb") as file:
            number = 0
            while (header := file.read(BLOCK)) and (plain := _plain(header)) is not None:
                name, size = plain
                _check_member(path, name, size, number)
                yield name, _contents(path, file, name, size)
                number += 1
            yield from _others(path, file, header, number)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror or error})") from None


def _contents(path: Path, file: BinaryIO, name: str, size: int) -> bytes:
    data = file.read(size + -size % BLOCK)
    if len(data) < size:
        raise DataError(f"{path}: cut off inside {name!r}; copy or download it again")
    return data[:size]


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size of a plain USTAR file; None for any other header, see `_others`."""
    size = _size_in(header[100:148], header[156:])
    name = header[:100].rstrip(b"\0")
    if size is None or not name or not name.isascii() or b"\0" in name:
        return None
    # 1 and the sum of all bytes, modulo 65521, is Adler-32's lower half: ten times faster than sum()
    if isal_zlib.adler32(header) & 0xFFFF != _adler_of(header[_CHECKSUM]):
        return None
    return name.decode(), size


@lru_cache(8192)
def _size_in(before: bytes, after: bytes) -> int | None:
    """The size that a plain file's header says, from what stands between name and checksum, and after; None for any other."""
    if len(after) < BLOCK - 156 or after[:1] not in b"0\0" or after[101:106] != b"ustar" or after[189:190] != b"\0":
        return None
    return _octal(before[24:35]) if before[24:35].isdigit() else None


@lru_cache(8192)
def _adler_of(field: bytes) -> int:
    """The lower half of the Adler-32 of a header with this checksum, which was summed up with blanks in its place."""
    told = _octal(field[:6])
    return -1 if told is None else (1 + told + sum(field) - 8 * 32) % 65521


def _others(path: Path, file: BinaryIO, header: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    """The files from a header on that isn't a plain one: folders, long names, other tools' headers, and the end.

    Read here, since `tarfile` of Python 3.11 calls itself for each header that tells of the next one, and some sizes send it
    round in circles.
    """
    told: dict[str, str] = {}
    notes = 0
    while header != _ZEROS:
        at = file.tell() - len(header)
        kind, name, size = _header(path, header, at)
        if kind in NOTES:
            notes += 1
            if size > MAX_NOTE_BYTES or notes > MAX_NOTES:
                what = f"{notes} headers for one file, the last of {size:,} bytes"
                raise DataError(f"{path}: damaged after {at:,} bytes: {what}; pack it again")
            told |= _told(path, kind, _contents(path, file, name, size))
        else:
            folder = kind == b"5" or (kind in PLAIN and name.endswith("/"))
            if not folder and (kind not in PLAIN or any(key.startswith("GNU.sparse") for key in told)):
                raise DataError(f"{path}: member {name!r} is a link or a special file; only plain files are read")
            name = told.get("path", name)
            size = 0 if folder else _number(path, told.get("size", str(size)))
            _check_member(path, name, size, number)
            if not folder:
                yield name, _contents(path, file, name, size)
            number, notes, told = number + 1, 0, {}
        header = file.read(BLOCK)


PLAIN = (b"0", b"\0", b"7")
NOTES = (b"x", b"g", b"L", b"K")
"""Kinds of headers that tell of the next file: PAX's, and of all that follow; GNU's long name, and long target of a link."""
MAX_NOTE_BYTES, MAX_NOTES = 2**20, 8


def _header(path: Path, header: bytes, at: int) -> tuple[bytes, str, int]:
    """Kind, name and size that a header says (POSIX.1-1988, GNU tar); its sum has to be right."""
    if len(header) < BLOCK or _octal(header[_CHECKSUM]) != sum(header) - sum(header[_CHECKSUM]) + 8 * 32:
        raise DataError(f"{path}: damaged or cut off after {at:,} bytes; copy or download it again")
    size = int.from_bytes(header[125:136], "big") if header[124] == 0x80 else _octal(header[124:136])
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    if prefix and header[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    if size is None or not name or header[257:262] not in (b"ustar", bytes(5)):
        raise DataError(f"{path}: damaged after {at:,} bytes: no name or no size; copy or download it again")
    return header[156:157], _text(path, name), size


def _octal(field: bytes) -> int | None:
    """0 where nothing stands; None where something else than a number does."""
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None if digits else 0


def _told(path: Path, kind: bytes, data: bytes) -> dict[str, str]:
    """What is said of the next file: PAX's keys and values, or its name as "path"."""
    if kind == b"L":
        return {"path": _text(path, data.partition(b"\0")[0])}
    found = {}
    while kind != b"K" and data:
        length = data.partition(b" ")[0]
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = data[len(length) + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise DataError(f"{path}: damaged: a PAX header that can't be read; copy or download it again")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            found[_text(path, key)] = _text(path, value)
        data = data[end:]
    if kind == b"g" and found:
        raise DataError(f"{path}: gives all its files one {min(found)!r}; pack it again")
    return found


def _text(path: Path, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: the name {name[:100]!r} in it isn't UTF-8; rename that file and pack it again") from None


def _number(path: Path, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise DataError(f"{path}: damaged: a file of {digits[:40]!r} bytes; copy or download it again")
    return int(digits)


def _check_member(path: Path, name: str, size: int, number: int) -> None:
    if storage.leads_out(name):
        raise DataError(f"{path}: member {name!r} has a path that leads out of the archive")
    if size > MAX_MEMBER_BYTES:
        raise DataError(f"{path}: member {name!r} has {size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read")
    if number >= MAX_MEMBERS:
        raise DataError(f"{path}: more than {MAX_MEMBERS:,} members")


def _decoded(path: Path, samples: list[tuple[str, dict[str, bytes]]], channels: int | None) -> Iterator[Member]:
    kinds = []
    for key, parts in samples:
        images = [extension for extension in IMAGES if extension in parts]
        if len(images) != 1:
            raise DataError(
                f"{path}: sample {key!r}: {len(images)} images (.png, .webp, .jpg) among its files {sorted(parts)}, expected 1"
            )
        kinds.append(images[0])
    files = [parts[kind] for (_, parts), kind in zip(samples, kinds, strict=True)]
    decoded = codec.decoded(files, lambda i: f"{path}: sample {samples[i][0]!r}", channels)
    for (key, parts), kind, file, image in zip(samples, kinds, files, decoded, strict=True):
        where = f"{path}: sample {key!r}"
        known = about_from(parts["json"], where) if "json" in parts else {}
        yield Member(key, image, _label(where, parts, known), known, file, kind)


def _label(where: str, parts: dict[str, bytes], known: dict[str, Any]) -> int | str:
    if "cls" in parts:
        text = parts["cls"][:1000].decode("utf-8", "replace").strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
    for field in ("label", "cls", "class_name", "class"):
        value = known.get(field)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value
    raise DataError(f"{where}: no label: neither a .cls nor a .json with 'label', 'cls', 'class_name' or 'class'")
