"""Samples -> shards in several formats, in one pass: each image is encoded once, and no more than a few chunks are held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from synthgen import storage
from synthgen.shards import folder as image_folder
from synthgen.shards import mds, npz, parquet, webdataset
from synthgen.shards.encode import Encoded
from synthgen.types import DatasetSpec, ExportFile, Shard

FORMATS: dict[str, ModuleType] = {
    "webdataset": webdataset,
    "parquet": parquet,
    "folder": image_folder,
    "npz": npz,
    "mds": mds,
}
"""Name -> its `shard`, `index` and `read`."""
ONE_PIECE = ("folder",)
"""Formats without shards."""

Put = Callable[[Sequence[Encoded]], list[str]]


@dataclass(frozen=True)
class Limits:
    """Where a shard ends, whatever its format: after so many samples, or before so many bytes of image files."""

    samples: int = 10_000
    bytes: int = 256 * 2**20


def write(
    folder: Path, chunks: Iterable[Sequence[Encoded]], spec: DatasetSpec, formats: Sequence[str], limits: Limits
) -> tuple[list[Shard], list[ExportFile]]:
    """Writes the samples, in their order, in every format; returns the files with samples and those beside them.

    The shards of all formats end at the same samples, so that shard i of each holds the same. A killed export leaves no
    manifest and is made again.

    Args:
        folder: of the export; each format has a subfolder of its own.
        chunks: see `encode.encoded`.
        spec: of the data set.
        formats: keys of `FORMATS`.
        limits: of a shard; one sample that is larger than a shard has a shard to itself.

    Raises:
        DataError: see `encode.encoded`.
        StorageError: the folder can't be written or the disk is full.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in formats}
    with ExitStack() as whole:
        fixed = {name: whole.enter_context(_open(name, folder, 0, spec)) for name in formats if name in ONE_PIECE}
        rolling = [name for name in formats if name not in fixed]
        for number, pieces in enumerate(_cut(chunks, limits)):
            with ExitStack() as stack:
                puts = {name: stack.enter_context(_open(name, folder, number, spec)) for name in rolling} | fixed
                for samples in pieces:
                    for name, put in puts.items():
                        paths = put(samples)
                        counts[name].update(paths if len(paths) == len(samples) else dict.fromkeys(paths, len(samples)))
    shards, files = [], []
    for name in formats:
        own = [_shard(folder, path, name, num) for path, num in counts[name].items()]
        shards += own
        files += [file_of(folder, path) for path in FORMATS[name].index(folder, own, spec)]
    return shards, files


def file_of(folder: Path, path: str) -> ExportFile:
    """What the manifest says of a file that stands."""
    return ExportFile(path, (folder / path).stat().st_size, storage.sha256_file(folder / path))


def _shard(folder: Path, path: str, name: str, num: int) -> Shard:
    found = file_of(folder, path)
    return Shard(path, name, num, found.num_bytes, found.sha256)


def _open(name: str, folder: Path, number: int, spec: DatasetSpec) -> AbstractContextManager[Put]:
    opened: AbstractContextManager[Put] = FORMATS[name].shard(folder, number, spec)
    return opened


def _cut(chunks: Iterable[Sequence[Encoded]], limits: Limits) -> Iterator[Iterator[Sequence[Encoded]]]:
    """For each shard its samples, in pieces; a shard's pieces have to be used up before the next shard is asked for."""
    source = iter(chunks)
    rest: Sequence[Encoded] = next(source, [])

    def pieces() -> Iterator[Sequence[Encoded]]:
        nonlocal rest
        num = size = 0
        while rest:
            for i, sample in enumerate(rest):
                if num and (num == limits.samples or size + len(sample.file) > limits.bytes):
                    if i:
                        yield rest[:i]
                    rest = rest[i:]
                    return
                num += 1
                size += len(sample.file)
            yield rest
            rest = next(source, [])

    while rest:
        yield pieces()
