"""Columns by name <-> one Parquet file: the gate's figures for each candidate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
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
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:  # ValueError: a text isn't UTF-8
        raise DataError(f"{path}: not readable as Parquet ({' '.join(str(error).split()) or type(error).__name__})") from None


def check_room(path: Path, num_bytes: int) -> None:
    """Refuses what would take more than half of this machine's memory, as a small file of packed zeros may.

    Raises:
        DataError: with both sizes.
    """
    memory = _memory()
    if memory and num_bytes > memory // 2:
        shown = f"{num_bytes / 2**30:,.1f} GiB of pixels, more than half of the {memory / 2**30:,.1f} GiB of memory here"
        raise DataError(f"{path}: holds {shown}; give it in parts")


@cache
def _memory() -> int:
    """Bytes that this process may have; 0 where the system doesn't say (Windows)."""
    try:
        import resource

        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    except (ImportError, AttributeError, ValueError, OSError):
        return 0
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # of a container
    return min(limit for limit in limits if limit > 0)
