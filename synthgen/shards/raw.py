"""Pixels between stages: one Parquet file with columns key, label and image (c * h * w bytes a row).

Uncompressed and without dates, in row groups of a fixed size: the same images give the same bytes, however they were
batched. The `DatasetSpec` travels in the file's metadata, so that a file of another data set is seen at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shapes import Int64
from synthgen.shards import pages
from synthgen.shards.pages import Rows, offsets
from synthgen.shards.table import check_room, readable
from synthgen.types import UNLABELLED, Batch, DatasetSpec

METADATA_KEY = b"synthgen"
LAYOUT: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "data_page_version": "1.0",
}
"""What `on_disk` relies on: pixels as they are."""
ROW_GROUP_BYTES = 16 * 2**20
"""Pixels in a row group, at most: what `iterate` holds in memory at once."""


@dataclass(frozen=True)
class OnDisk:
    """Labelled images that stay in their file: indexing `images` reads rows.

    Attributes:
        images: uint8, shape (n, c, h, w).
        labels: int64, shape (n,); `UNLABELLED` (-1) where the class is unknown.
    """

    images: Rows
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


def write(path: Path, batches: Iterable[Batch], spec: DatasetSpec) -> None:
    """Writes batches as one file, atomically; no batch at all gives a file of no rows.

    Raises:
        DataError: images of another shape or labels of another number of classes than `spec` says, or a key twice.
    """
    schema = _schema(spec)
    group = _rows_per_group(spec)
    seen: set[str] = set()
    with (
        storage.atomic(path) as file,
        pq.ParquetWriter(file, schema, **LAYOUT) as writer,
    ):
        waiting: list[Batch] = []
        for batch in batches:
            _check(batch, spec, path)
            new = set(batch.keys)
            if len(new) < len(batch) or new & seen:
                raise DataError(f"{path}: the key {_twice(batch.keys, seen)!r} would stand in it twice")
            seen |= new
            waiting.append(batch)
            if sum(map(len, waiting)) >= group:
                whole = Batch.concatenate(waiting)
                last = len(whole) - len(whole) % group
                for start in range(0, last, group):
                    writer.write_batch(_to_arrow(whole.take(np.arange(start, start + group)), schema))
                waiting = [whole.take(np.arange(last, len(whole)))]
        if sum(map(len, waiting)):
            writer.write_batch(_to_arrow(Batch.concatenate(waiting), schema))


def read(path: Path, spec: DatasetSpec | None = None) -> Batch:
    """The whole file as one batch.

    Args:
        path: a file that `write` made.
        spec: the data set that it has to belong to, if given.

    Raises:
        DataError: no such file, not one of ours, damaged, or of another data set.
    """
    found = read_spec(path)
    batches = list(iterate(path, _rows_per_group(found), spec))
    return Batch.concatenate(batches) if batches else _empty(found)


def on_disk(path: Path, spec: DatasetSpec | None = None) -> OnDisk:
    """The rows of the file without their keys, the pixels left where they are: 16 bytes of memory a row.

    Raises as `read`, but for damage among the pixels, which shows when they are read or not at all.
    """
    found = read_spec(path)
    if spec is not None:
        _same_data(path, found, spec)
    with readable(path), pq.ParquetFile(path) as file:
        labels = file.read(columns=["label"]).column("label")
        places = offsets(path, int(np.prod(found.image_shape)))
    if labels.null_count:
        raise DataError(f"{path}: damaged (a row without a value); run the job that made it again")
    table = OnDisk(Rows(path, places, found.image_shape), labels.to_numpy().copy())
    _check_labels(table.labels, found, path)
    return table


def keys(path: Path) -> tuple[str, ...]:
    """The keys of all rows; raises as `read`."""
    read_spec(path)
    with readable(path):
        return tuple(pq.read_table(path, columns=["key"]).column("key").to_pylist())


def iterate(path: Path, batch: int, spec: DatasetSpec | None = None) -> Iterator[Batch]:
    """The rows in batches of `batch`, the last one shorter; raises as `read`."""
    found = read_spec(path)
    if spec is not None:
        _same_data(path, found, spec)
    with readable(path), pq.ParquetFile(path) as file:
        _check_room(path, found)
        for rows in file.iter_batches(batch):
            rows.validate(full=True)  # lengths that a damaged page gave
            yield _from_arrow(rows, found, path)


def read_spec(path: Path) -> DatasetSpec:
    """The data set that a file belongs to; raises as `read`."""
    with readable(path):
        schema = pq.read_schema(path)
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise DataError(f"{path}: not a file that synthgen wrote between its stages; read it with data.source=parquet")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: its metadata isn't JSON; run the job that made it again") from None
    spec = DatasetSpec.from_json(data, str(path))
    with readable(path):
        fits = schema.equals(_schema(spec))
    if not fits:
        raise DataError(f"{path}: columns {schema.names} don't fit images of shape {spec.image_shape}")
    return spec


def is_raw(path: Path) -> bool:
    """Whether a Parquet file was written by `write`; False too for what isn't Parquet."""
    try:
        return METADATA_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def _check_room(path: Path, spec: DatasetSpec) -> None:
    """Packed by another tool, a file of a few bytes may hold more pixels than there is memory."""
    columns = pages.columns(path)
    rows = sum(column.rows for column in columns if column.name == "image")
    check_room(path, max(rows * int(np.prod(spec.image_shape)), sum(column.unpacked for column in columns)))


def _schema(spec: DatasetSpec) -> pa.Schema:
    fields = [("key", pa.string()), ("label", pa.int64()), ("image", pa.binary(int(np.prod(spec.image_shape))))]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(spec.to_json(), ensure_ascii=False).encode()})


def _rows_per_group(spec: DatasetSpec) -> int:
    return max(1, min(65_536, ROW_GROUP_BYTES // int(np.prod(spec.image_shape))))


def _to_arrow(batch: Batch, schema: pa.Schema) -> pa.RecordBatch:
    pixels = pa.py_buffer(np.ascontiguousarray(batch.images))
    image = pa.Array.from_buffers(schema.field("image").type, len(batch), [None, pixels])
    return pa.record_batch([pa.array(batch.keys, pa.string()), pa.array(batch.labels, pa.int64()), image], schema=schema)


def _from_arrow(rows: pa.RecordBatch, spec: DatasetSpec, path: Path) -> Batch:
    image = rows.column("image")
    if any(column.null_count for column in rows.columns):
        raise DataError(f"{path}: damaged (a row without a value); run the job that made it again")
    size = image.type.byte_width
    pixels = np.frombuffer(image.buffers()[1], np.uint8, count=len(image) * size, offset=image.offset * size)
    batch = Batch(
        pixels.reshape(-1, *spec.image_shape).copy(),
        rows.column("label").to_numpy().copy(),
        tuple(rows.column("key").to_pylist()),
    )
    _check(batch, spec, path)
    return batch


def _empty(spec: DatasetSpec) -> Batch:
    return Batch(np.zeros((0, *spec.image_shape), np.uint8), np.zeros(0, np.int64), ())


def _check(batch: Batch, spec: DatasetSpec, path: Path) -> None:
    if batch.images.shape[1:] != spec.image_shape:
        raise DataError(f"{path}: images of shape {batch.images.shape[1:]}, the data set {spec.name!r} has {spec.image_shape}")
    _check_labels(batch.labels, spec, path)


def _check_labels(labels: np.ndarray, spec: DatasetSpec, path: Path) -> None:
    if len(labels) and not UNLABELLED <= labels.min() <= labels.max() < spec.num_classes:
        outside = labels[(labels < UNLABELLED) | (labels >= spec.num_classes)][0]
        raise DataError(f"{path}: label {outside}, the data set {spec.name!r} has {spec.num_classes} classes")


def _twice(keys: tuple[str, ...], seen: set[str]) -> str:
    for i, key in enumerate(keys):
        if key in seen or key in keys[:i]:
            return key
    raise AssertionError("no key stands twice")


def _same_data(path: Path, found: DatasetSpec, expected: DatasetSpec) -> None:
    for name in ("image_shape", "class_names", "fingerprint"):
        if getattr(found, name) != getattr(expected, name):
            raise DataError(
                f"{path}: belongs to another data set: its {name} is {getattr(found, name)!r}, "
                f"that of {expected.name!r} is {getattr(expected, name)!r}"
            )
