"""Where the images of a raw file lie in it, so that rows are read when they are asked for and memory doesn't grow with the set.

Parquet's PLAIN encoding leaves the pixels of a data page as they are, row after row. A header stands before each page and
the other columns between row groups, so no one array can be a view of the file: `offsets` finds each row, `Rows` reads it.

Rows are read and not mapped into memory. Once touched, a map's pages count as the process's memory; from a cold disk it
fetches row after row (85 us each and more at batches of 16 and 64, where asking for a whole batch at once takes 12 to 16);
and a file cut short ends the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq

from synthgen.errors import DataError
from synthgen.shapes import Int64, UInt8

HEADER_BYTES = 256
"""Read for a page's header; without statistics it has about 25."""


class Rows:
    """Images in a raw file, uint8 `n c h w`: an index along the first axis, as numpy's, reads these rows.

    Nothing is held but 8 bytes a row. From the page cache a row of 3 kB takes 2 us.

    Raises:
        DataError: when rows are read: the file isn't the one that was opened, or can't be read.
    """

    def __init__(self, path: Path, offsets: Int64[np.ndarray, " n"], image_shape: tuple[int, int, int]) -> None:
        self.path, self.offsets, self.image_shape = path, offsets, image_shape
        self.identity = _identity(os.stat(path))

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.image_shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, rows: Any) -> UInt8[np.ndarray, "*b c h w"]:
        places = self.offsets[rows]
        found = np.empty((places.size, int(np.prod(self.image_shape))), np.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self.identity:
                    raise DataError(f"{self.path}: changed while it was in use; run the job again")
                self._read(file, places.ravel().tolist(), found)
        except OSError as error:
            raise DataError(f"{self.path}: can no longer be read ({error})") from None
        return found.reshape(*places.shape, *self.image_shape)

    def _read(self, file: BinaryIO, places: list[int], found: UInt8[np.ndarray, "b d"]) -> None:
        if hasattr(os, "posix_fadvise"):  # a disk answers many requests at once sooner than one after the other
            for place in places:
                os.posix_fadvise(file.fileno(), place, found.shape[1], os.POSIX_FADV_WILLNEED)
        for place, row in zip(places, found, strict=True):
            file.seek(place)
            if file.readinto(row) != len(row):  # type: ignore[attr-defined]
                raise DataError(f"{self.path}: damaged (it ends within an image); run the job that made it again")


def offsets(path: Path, row_bytes: int) -> Int64[np.ndarray, " n"]:
    """Byte offset of each row's pixels in a file that `raw.write` made; a read of some bytes for each page.

    Raises:
        DataError: another layout than that of `raw.write`, a row without pixels, or a damaged page.
    """
    metadata = pq.read_metadata(path)
    found = [np.zeros(0, np.int64)]
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size
        for group in range(metadata.num_row_groups):
            columns = metadata.row_group(group)
            found_here = [c for i in range(columns.num_columns) if (c := columns.column(i)).path_in_schema == "image"]
            if not found_here:
                raise _unknown(path, "a row group without them")
            column = found_here[0]
            if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
                raise _unknown(path, f"{column.compression}, dictionary: {column.has_dictionary_page}")
            start = column.data_page_offset
            if not 0 <= start <= start + column.total_compressed_size <= whole:
                raise _unknown(path, f"a column from byte {start} to {start + column.total_compressed_size} of {whole}")
            pages = list(_pages(file, path, start, start + column.total_compressed_size, row_bytes))
            if sum(map(len, pages)) != columns.num_rows:
                raise _unknown(path, f"pages of {sum(map(len, pages))} rows in a row group of {columns.num_rows}")
            found += pages
    return np.concatenate(found)


def _pages(file: BinaryIO, path: Path, start: int, end: int, row_bytes: int) -> Iterator[Int64[np.ndarray, " n"]]:
    """Offsets of the rows of each page between two offsets.

    A page (parquet.thrift) is a header, four bytes with the length of the definition levels, these, and the values. A row
    without a value has a level and no bytes: such a page is shorter than its number of rows says.
    """
    while start < end:
        file.seek(start)
        head = file.read(min(HEADER_BYTES, end - start))
        try:
            header, length = _struct(head, 0)
            kind, size, stored, about = (header[i] for i in (1, 2, 3, 5))
            num, encoding, levels_encoding = (about[i] for i in (1, 2, 3))
        except (IndexError, KeyError, TypeError, ValueError):
            raise _unknown(path, f"no page of data at byte {start}") from None
        if (kind, encoding, levels_encoding) != (0, 0, 3):
            raise _unknown(path, f"a page of kind {kind}, encodings {encoding} and {levels_encoding}")
        levels = int.from_bytes(head[length : length + 4], "little")
        first, stop = start + length + 4 + levels, start + length + size
        if size != stored or num < 1 or stop > end or stop - first != num * row_bytes:
            raise _unknown(path, f"a page of {size} bytes for {num} images of {row_bytes}")
        yield first + row_bytes * np.arange(num, dtype=np.int64)
        start = stop


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """One struct of Thrift's compact protocol from `at` on: its fields by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = divmod(data[at], 16)
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            fields[number], at = _integer(data, at)
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"no field of kind {kind} stands in the headers that are read here")
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A number of Thrift's compact protocol (zigzag, 7 bits a byte, the lowest first), and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value >> 1 ^ -(value & 1), at


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unknown(path: Path, what: str) -> DataError:
    return DataError(f"{path}: its pixels don't lie as synthgen writes them ({what}); run the job that made it again")
