"""MosaicML's MDS, which `streaming.StreamingDataset` reads: about (JSON), image (PNG or WebP), key and label of each sample.

Written here and not by `streaming.MDSWriter`: that library needs torchvision, of which the registry's build breaks Lightning
beside a torch built for the CPU, so it can't stand in one environment with synthgen. A file is the number of samples n, n + 1
offsets, the layout as JSON, and the samples: the sizes of the columns whose size isn't fixed, then the columns, in order of
their names. All numbers are little-endian; those of the head are of 32 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec
from synthgen.shards.encode import CHUNK, Encoded, Member, about_from, about_json
from synthgen.types import DatasetSpec, Shard

FOLDER = "mds"
LAYOUT: dict[str, Any] = {
    "column_encodings": ["json", "png", "str", "int"],
    "column_names": ["about", "image", "key", "label"],
    "column_sizes": [None, None, None, 8],
    "compression": None,
    "format": "mds",
    "hashes": ["sha256"],
    "size_limit": None,
    "version": 2,
}
"""Whatever is stored as "png" is opened by Pillow, WebP too."""
HEAD = json.dumps(LAYOUT, sort_keys=True).encode()
MOST_BYTES = 2**32 - 1


def path_of(number: int) -> str:
    """Where the file of a number lies in the export."""
    return f"{FOLDER}/shard.{number:05d}.mds"


@contextmanager
def shard(folder: Path, number: int, spec: DatasetSpec) -> Iterator[Callable[[Sequence[Encoded]], list[str]]]:
    """A file that takes samples until it is closed, when it is written: offsets stand first, so it is held until then."""
    name = path_of(number)
    pieces: list[bytes] = []
    sizes: list[int] = []

    def put(samples: Sequence[Encoded]) -> list[str]:
        for sample in samples:
            columns = about_json(sample, spec), sample.file, sample.key.encode()
            lengths = [len(column) for column in columns]
            pieces.extend((np.array(lengths, "<u4").tobytes(), *columns, sample.label.to_bytes(8, "little")))
            sizes.append(4 * len(columns) + sum(lengths) + 8)
        return [name]

    yield put
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    offsets += 4 + 4 * len(offsets) + len(HEAD)
    if offsets[-1] > MOST_BYTES:
        raise DataError(f"{folder / name}: an MDS file ends before 4 GiB; give a smaller export.shard_mb or export.shard_size")
    with storage.atomic(folder / name) as file:
        file.write(len(sizes).to_bytes(4, "little") + offsets.astype("<u4").tobytes() + HEAD)
        file.writelines(b"".join(pieces[i : i + 1024]) for i in range(0, len(pieces), 1024))


def index(folder: Path, shards: Sequence[Shard], spec: DatasetSpec) -> list[str]:
    """Writes the list of files that `StreamingDataset` starts from; returns the paths written."""
    listed = [
        LAYOUT
        | {
            "raw_data": {"basename": Path(s.path).name, "bytes": s.num_bytes, "hashes": {"sha256": s.sha256}},
            "samples": s.num_samples,
            "zip_data": None,
        }
        for s in shards
    ]
    name = f"{FOLDER}/index.json"
    storage.write_json(folder / name, {"shards": listed, "version": 2})
    return [name]


def read(path: Path, channels: int | None = None) -> Iterator[Member]:
    """The samples of a file that `shard` made.

    Raises:
        DataError: not readable, of another layout, or damaged.
    """
    try:
        with open(path, "rb") as file:
            num = int.from_bytes(file.read(4), "little")
            whole = path.stat().st_size
            if 4 * num + 8 + len(HEAD) > whole:
                raise DataError(f"{path}: not an MDS file of synthgen, or cut off")
            offsets = np.frombuffer(file.read(4 * num + 4), "<u4").astype(np.int64)
            if file.read(len(HEAD)) != HEAD or offsets[0] != file.tell() or offsets[-1] != whole or (np.diff(offsets) < 0).any():
                raise DataError(f"{path}: not an MDS file of synthgen, or cut off")
            for start in range(0, num, CHUNK):
                ends = offsets[start : start + CHUNK + 1].tolist()
                yield from _members(path, [file.read(end - begin) for begin, end in pairwise(ends)], channels)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror or error})") from None


def _members(path: Path, samples: Sequence[bytes], channels: int | None) -> Iterator[Member]:
    parts = [_columns(path, sample) for sample in samples]
    images = codec.decoded([image for _, image, _, _ in parts], lambda i: f"{path}: sample {parts[i][2]!r}", channels)
    for (text, file, key, label), image in zip(parts, images, strict=True):
        extension = "png" if file.startswith(codec.SIGNATURE) else "webp"
        yield Member(key, image, label, about_from(text, f"{path}: sample {key!r}"), file, extension)


def _columns(path: Path, sample: bytes) -> tuple[bytes, bytes, str, int]:
    about, image, key = (int.from_bytes(sample[i : i + 4], "little") for i in (0, 4, 8))
    ends = 12 + about, 12 + about + image, 12 + about + image + key
    if len(sample) != ends[2] + 8:
        raise DataError(f"{path}: damaged (a sample of {len(sample)} bytes, its columns have {ends[2] + 8}); copy it again")
    try:
        name = sample[ends[1] : ends[2]].decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: damaged (a key that isn't UTF-8); copy it again") from None
    return sample[12 : ends[0]], sample[ends[0] : ends[1]], name, int.from_bytes(sample[ends[2] :], "little", signed=True)
