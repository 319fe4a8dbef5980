"""Columns by name <-> one Parquet file: the gate's figures for each candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthgen import storage
from synthgen.errors import DataError


def write(path: Path, columns: Mapping[str, Any]) -> None:
    """Writes columns of one length (lists or arrays), the same bytes for the same values."""
    with storage.atomic(path) as file:
        pq.write_table(pa.table(dict(columns)), file, compression="zstd", compression_level=3)


def read(path: Path) -> dict[str, list[Any]]:
    """The columns as Python lists.

    Raises:
        DataError: missing or damaged.
    """
    with readable(path):
        return pq.read_table(path).to_pydict()


def open_table(path: Path) -> pa.Table:
    """The columns as Arrow keeps them: eight bytes a figure, where a Python list takes 32; raises as `read`."""
    with readable(path):
        return pq.read_table(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises for a missing or damaged file into a `DataError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from None
