"""Parquet in the Hugging Face image layout: `datasets.load_dataset` gives an Image and a ClassLabel column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError
from synthgen.shards.encode import Encoded, Samples, chunks, decode_image, encoded, scores_json
from synthgen.shards.webdataset import Member
from synthgen.types import DatasetSpec, Shard

FOLDER = "parquet"
ROW_GROUP = 1_000
COLUMNS = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("key", pa.string()),
        ("synthetic", pa.bool_()),
        ("generator", pa.string()),
        ("checkpoint", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("scores", pa.string()),
    ]
)
"""`scores` is a JSON object: which signals there are depends on the gate."""


def write(folder: Path, samples: Samples, spec: DatasetSpec, shard_size: int, num_samples: int) -> list[Shard]:
    """Writes `parquet/train-00000-of-0000N.parquet` and so on, at most `shard_size` samples each; [] for no samples.

    Args:
        folder: of the export; the files go into its subfolder `parquet`.
        samples: batches with what is to be said of each sample.
        spec: of the data set.
        shard_size: most samples a file.
        num_samples: how many samples there are, since the number of files stands in their names.

    Raises:
        DataError: see `encode.encoded`; or another number of samples came than was announced.
    """
    total = -(-num_samples // shard_size)
    schema = COLUMNS.with_metadata({b"huggingface": json.dumps({"info": {"features": _features(spec)}}).encode()})
    rest = encoded(samples, spec)
    shards = []
    for number in range(total):
        name = f"{FOLDER}/train-{number:05d}-of-{total:05d}.parquet"
        count = min(shard_size, num_samples - number * shard_size)
        with storage.atomic(folder / name) as file:
            written = _write_file(file, schema, rest, count)
            if written < count:
                raise DataError(f"{folder / name}: {num_samples} samples were announced, {number * shard_size + written} came")
        path = folder / name
        shards.append(Shard(name, "parquet", count, path.stat().st_size, storage.sha256_file(path)))
    if next(rest, None) is not None:
        raise DataError(f"{folder / FOLDER}: {num_samples} samples were announced, more came")
    return shards


def read(path: Path) -> Iterator[Member]:
    """The samples of a file that `write` made.

    Raises:
        DataError: not readable, or of another layout.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names != COLUMNS.names:
                raise DataError(f"{path}: columns {file.schema_arrow.names}, an export of synthgen has {COLUMNS.names}")
            for batch in file.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    image = (row["image"] or {}).get("bytes")
                    if image is None or row["label"] is None or row["key"] is None:
                        raise DataError(f"{path}: damaged: a row without image, label or key")
                    yield Member(row["key"], decode_image(image, f"{path}: sample {row['key']!r}"), row["label"], row)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from None


def _write_file(file: Any, schema: pa.Schema, rest: Iterator[Encoded], count: int) -> int:
    """Writes up to `count` samples in row groups of a fixed size; returns how many came."""
    written = 0
    options = {"compression": "zstd", "compression_level": 3, "use_dictionary": ["generator", "checkpoint"]}
    with pq.ParquetWriter(file, schema, write_statistics=["label", "seed", "index"], **options) as writer:
        while written < count and (rows := next(chunks(rest, min(ROW_GROUP, count - written)), [])):
            writer.write_batch(pa.RecordBatch.from_pylist([_row(sample) for sample in rows], schema))
            written += len(rows)
    return written


def _row(sample: Encoded) -> dict[str, Any]:
    return {
        "image": {"bytes": sample.png, "path": f"{sample.key}.png"},
        "label": sample.label,
        "key": sample.key,
        "synthetic": True,
        "generator": sample.info.generator,
        "checkpoint": sample.info.checkpoint,
        "seed": sample.info.seed,
        "index": sample.info.index,
        "scores": json.dumps(scores_json(sample.info.scores), allow_nan=False),
    }


def _features(spec: DatasetSpec) -> dict[str, Any]:
    """The columns as the library `datasets` describes them."""
    special = {"image": {"_type": "Image"}, "label": {"names": list(spec.class_names), "_type": "ClassLabel"}}
    plain = {field.name: {"dtype": str(field.type), "_type": "Value"} for field in COLUMNS if field.name not in special}
    return special | plain
