"""Parquet in the Hugging Face image layout: `datasets.load_dataset` gives an Image and a ClassLabel column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards import codec
from synthgen.shards.encode import CHUNK, Encoded, Member, about
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
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name != "scores"]
            if names != list(COLUMNS):
                raise DataError(f"{path}: columns {names}, an export of synthgen has {list(COLUMNS)}")
            for batch in file.iter_batches(CHUNK):
                yield from _members(path, batch, channels)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from None


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


def _table(samples: Sequence[Encoded], spec: DatasetSpec, schema: pa.Schema | None, path: Path) -> pa.RecordBatch:
    assert schema is not None
    rows = [about(sample, spec) for sample in samples]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in schema.names if name in rows[0]}
    image = {"bytes": [s.file for s in samples], "path": [f"{s.key}.{s.extension}" for s in samples]}
    columns["image"] = pa.StructArray.from_arrays(
        [pa.array(image["bytes"], pa.binary()), pa.array(image["path"], pa.string())], names=["bytes", "path"]
    )
    names = set(schema.field("scores").type.names) if "scores" in schema.names else set()
    other = next((s for s in samples if set(s.info.scores) != names), None)
    if other is not None:
        raise DataError(
            f"{path}: sample {other.key!r} has the scores {sorted(other.info.scores)}, those before it {sorted(names)}"
        )
    return pa.record_batch([_array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _members(path: Path, batch: pa.RecordBatch, channels: int | None) -> Iterator[Member]:
    image, keys, labels = batch.column("image"), batch.column("key"), batch.column("label")
    files, names = image.field("bytes"), image.field("path")
    if any(column.null_count for column in (image, files, names, keys, labels)):
        raise DataError(f"{path}: damaged: a row without image, label or key")
    known = files.to_pylist()
    ids = keys.to_pylist()
    decoded = codec.decode(known, lambda i: f"{path}: sample {ids[i]!r}", channels)
    rest = batch.drop_columns(["image"]).to_pylist()
    for row, picture, file, name in zip(rest, decoded, known, names.to_pylist(), strict=True):
        yield Member(row["key"], picture, row["label"], {"scores": {}, **row}, file, name.rpartition(".")[2])
