"""Parquet in the Hugging Face image layout: `datasets.load_dataset` gives an Image and a ClassLabel column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec, pages
from synthgen.shards.encode import CHUNK, Encoded, Member
from synthgen.types import DatasetSpec, Shard

FOLDER = "parquet"
ROW_GROUP = 4 * CHUNK
COLUMNS: dict[str, pa.DataType] = {
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "label": pa.int64(),
    "key": pa.string(),
    "class_name": pa.string(),
    "synthetic": pa.bool_(),
    "generator": pa.string(),
    "checkpoint": pa.string(),
    "seed": pa.int64(),
    "index": pa.int64(),
    "sampler": pa.string(),
    "licence": pa.string(),
    "soft_label": pa.list_(pa.float32()),
    "nearest": pa.string(),
    "nearest_distance": pa.float64(),
    "reasons": pa.list_(pa.string()),
}
"""Beside them `scores`, a struct of the gate's signals, where there are any."""
MOST_UNPACKED = 2**28
"""Bytes of a column of a row group, other than the images: 1,024 samples with 256 kB each."""
CONSTANT = ("class_name", "generator", "checkpoint", "sampler", "licence")
"""Columns with few different values."""


def path_of(number: int) -> str:
    """Where the file of a number lies in the export."""
    return f"{FOLDER}/train-{number:05d}.parquet"


@contextmanager
def shard(folder: Path, number: int, spec: DatasetSpec) -> Iterator[Callable[[Sequence[Encoded]], list[str]]]:
    """A file that takes samples until it is closed; each call returns the paths that it has written to."""
    name = path_of(number)
    writer: pq.ParquetWriter | None = None
    schema: pa.Schema | None = None
    waiting: list[Encoded] = []

    def flush(num: int) -> None:
        assert writer is not None
        assert schema is not None
        writer.write_batch(_table(waiting[:num], spec, schema, folder / name))
        del waiting[:num]

    with storage.atomic(folder / name) as file:

        def put(samples: Sequence[Encoded]) -> list[str]:
            nonlocal writer, schema
            if writer is None:
                schema = schema_of(spec, tuple(sorted(samples[0].info.scores)))
                writer = pq.ParquetWriter(
                    file,
                    schema,
                    compression={column: "none" if column.startswith("image") else "zstd" for column in _leaves(schema)},
                    use_dictionary=list(CONSTANT),
                    write_statistics=["label", "seed", "index"],
                )
            waiting.extend(samples)
            while len(waiting) >= ROW_GROUP:
                flush(ROW_GROUP)
            return [name]

        try:
            yield put
            if waiting:
                flush(len(waiting))
        finally:
            if writer is not None:
                writer.close()


def index(folder: Path, shards: Sequence[Shard], spec: DatasetSpec) -> list[str]:
    """The data set card lists the files."""
    return []


def read(path: Path, channels: int | None = None) -> Iterator[Member]:
    """The samples of a file that `shard` made.

    Raises:
        DataError: not readable, or of another layout.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=list(CONSTANT)) as file:
            _check_layout(path, file)
            for batch in file.iter_batches(CHUNK, use_threads=False):
                batch.validate(full=True)  # lengths and numbers that a damaged page gave
                yield from _members(path, batch, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:  # no UTF-8, a column missing
        raise DataError(f"{path}: not readable as Parquet ({' '.join(str(error).split()) or type(error).__name__})") from None


def _check_layout(path: Path, file: pq.ParquetFile) -> None:
    """The columns of `COLUMNS` with their types, none of which a few bytes on disk could make large in memory."""
    schema = file.schema_arrow
    names = [name for name in schema.names if name != "scores"]
    if names != list(COLUMNS):
        raise DataError(f"{path}: columns {names}, an export of synthgen has {list(COLUMNS)}")
    for name in names:
        if _plain(schema.field(name).type) != _plain(COLUMNS[name]):
            raise DataError(f"{path}: column {name!r} is {schema.field(name).type}, an export of synthgen has {COLUMNS[name]}")
    if "scores" in schema.names:
        kind = schema.field("scores").type
        if not pa.types.is_struct(kind) or any(not pa.types.is_float64(field.type) for field in kind):
            raise DataError(f"{path}: column 'scores' is {kind}, an export of synthgen has a number for each signal")
    for column in pages.columns(path):
        if column.dictionary and column.name not in CONSTANT:
            raise DataError(f"{path}: column {column.name!r} has a dictionary, which in an export of synthgen it hasn't")
        if column.unpacked > (path.stat().st_size if column.name.startswith("image") else MOST_UNPACKED):
            raise DataError(
                f"{path}: column {column.name!r} would take {column.unpacked:,} bytes; export it again in smaller shards"
            )


def _plain(kind: pa.DataType) -> str:
    """A type without the name that a list gives its entries, and however its values are kept."""
    if pa.types.is_list(kind):
        return f"list of {kind.value_type}"
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind)


def schema_of(spec: DatasetSpec, signals: tuple[str, ...]) -> pa.Schema:
    """Columns with the description that the library `datasets` reads."""
    fields = dict(COLUMNS)
    if signals:
        fields["scores"] = pa.struct([(name, pa.float64()) for name in signals])
    plain: dict[str, Any] = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in fields.items()}
    plain["synthetic"]["dtype"] = "bool"
    plain["nearest_distance"]["dtype"] = "float64"
    plain["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    plain["reasons"] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}
    plain["image"] = {"_type": "Image"}
    plain["label"] = {"names": list(spec.class_names), "_type": "ClassLabel"}
    if signals:
        plain["scores"] = {name: {"dtype": "float64", "_type": "Value"} for name in signals}
    return pa.schema(list(fields.items()), metadata={b"huggingface": json.dumps({"info": {"features": plain}}).encode()})


def _leaves(schema: pa.Schema) -> list[str]:
    """Paths of the columns as Parquet counts them."""
    found = []
    for field in schema:
        if pa.types.is_struct(field.type):
            found += [f"{field.name}.{child.name}" for child in field.type]
        else:
            found.append(f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name)
    return found


def _table(samples: Sequence[Encoded], spec: DatasetSpec, schema: pa.Schema, path: Path) -> pa.RecordBatch:
    """The samples as columns: what `about` says of each, without a dictionary for each."""
    keys, labels, _, files, extensions, infos = zip(*samples, strict=True)
    signals = schema.field("scores").type.names if "scores" in schema.names else []
    names = set(signals)
    for key, info in zip(keys, infos, strict=True):
        if info.scores.keys() != names:
            raise DataError(f"{path}: sample {key!r} has the scores {sorted(info.scores)}, those before it {sorted(names)}")
    paths = [f"{key}.{extension}" for key, extension in zip(keys, extensions, strict=True)]
    columns: dict[str, Any] = {
        "image": _struct(schema.field("image").type, [files, paths]),
        "label": np.array(labels),
        "key": keys,
        "class_name": [spec.class_names[label] for label in labels],
        "synthetic": np.ones(len(keys), bool),
        "seed": [info.seed for info in infos],
        "index": [info.index for info in infos],
        "soft_label": _lists(schema.field("soft_label").type, [info.soft_label or None for info in infos]),
        "nearest": [info.nearest or None for info in infos],
        "nearest_distance": np.array([info.nearest_distance for info in infos], np.float64),
        "reasons": _lists(schema.field("reasons").type, [info.reasons for info in infos]),
    }
    for name in ("generator", "checkpoint", "sampler", "licence"):
        columns[name] = [getattr(info, name) for info in infos]
    if signals:
        columns["scores"] = _struct(
            schema.field("scores").type, [np.array([info.scores[name] for info in infos], np.float64) for name in signals]
        )
    return pa.record_batch([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _struct(kind: pa.StructType, columns: Sequence[Any]) -> pa.Array:
    """A column whose fields are columns, in their order."""
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays([_array(c, f.type) for c, f in zip(columns, fields, strict=True)], fields=fields)


def _lists(kind: pa.ListType, rows: Sequence[tuple[Any, ...] | None]) -> pa.Array:
    """A column of lists; None is null."""
    sizes = [0 if row is None else len(row) for row in rows]
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    values = pa.array(list(chain.from_iterable(row for row in rows if row)), kind.value_type)
    empty = np.array([row is None for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=pa.array(empty) if empty.any() else None)


def _members(path: Path, batch: pa.RecordBatch, channels: int | None) -> Iterator[Member]:
    image, keys, labels = batch.column("image"), batch.column("key"), batch.column("label")
    files, names = image.field("bytes"), image.field("path")
    if any(column.null_count for column in (image, files, names, keys, labels)):
        raise DataError(f"{path}: damaged: a row without image, label or key")
    known, ids = _values(files), _values(keys)
    decoded = codec.decoded(known, lambda i: f"{path}: sample {ids[i]!r}", channels)
    rest = [name for name in batch.schema.names if name != "image"]
    rows = zip(*(_values(batch.column(name)) for name in rest), strict=True)
    own: dict[str, Any] = {} if "scores" in rest else {"scores": {}}
    for row, key, label, picture, file, name in zip(rows, ids, _values(labels), decoded, known, _values(names), strict=True):
        yield Member(key, picture, label, dict(zip(rest, row, strict=True), **own), file, name.rpartition(".")[2])


def _values(column: pa.Array) -> list[Any]:
    """As `to_pylist`, which makes a scalar of each value first: a third of its time."""
    kind = column.type
    if pa.types.is_dictionary(kind):  # each value once in memory, however many rows have it
        known = _values(column.dictionary)
        return [None if number is None else known[number] for number in _values(column.indices)]
    if pa.types.is_struct(kind) and not column.null_count:
        names = [field.name for field in kind]
        return [dict(zip(names, row, strict=True)) for row in zip(*map(_values, column.flatten()), strict=True)]
    if pa.types.is_list(kind):
        flat, ends = _values(column.values), column.offsets.to_numpy().tolist()
        rows: list[Any] = [flat[begin:end] for begin, end in pairwise(ends)]
        if column.null_count:
            rows = [row if valid else None for row, valid in zip(rows, _values(column.is_valid()), strict=True)]
        return rows
    plain = pa.types.is_string(kind) or pa.types.is_binary(kind) or not column.null_count
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist() if plain else column.to_pylist()
    return values
