"""Columns by name <-> one Parquet file: the gate's figures for each candidate."""

from __future__ import annotations

from collections.abc import Mapping
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
    try:
        return pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet ({' '.join(str(error).split())[:100]})") from None
