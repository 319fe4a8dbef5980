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
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from synthgen.errors import DataError
from synthgen.shapes import Int64, UInt8

HEADER_BYTES = 256
"""Read for a page's header; without statistics it has about 25."""
MOST_DEPTH = 16
"""Structs and lists within each other; the footer has 6."""


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


class Column(NamedTuple):
    """A column of a row group, as the end of the file describes it.

    Attributes:
        name: of the column, of a field within one with a dot.
        rows: in the row group.
        packed, dictionary: whether its pages are compressed, and whether its values may be numbers of a dictionary.
        start, stored: where its first page of data lies, and how many bytes all its pages have, a dictionary's too.
        unpacked: bytes of the pages when they are no longer compressed.
    """

    name: str
    rows: int
    packed: bool
    dictionary: bool
    start: int
    stored: int
    unpacked: int


def columns(path: Path) -> list[Column]:
    """Every column of every row group, from the end of the file.

    Read here (parquet.thrift), since pyarrow ends the whole process over some of what can be wrong there.

    Raises:
        DataError: not Parquet, or damaged.
    """
    with open(path, "rb") as file:
        whole = os.fstat(file.fileno()).st_size
        file.seek(max(whole - 8, 0))
        length = int.from_bytes(file.read(4), "little")
        if file.read(4) != b"PAR1" or length > whole - 12:
            raise DataError(f"{path}: not readable as Parquet (no footer); copy it again, or run the job that made it again")
        file.seek(whole - 8 - length)
        footer = file.read(length)
    try:
        about, _ = _struct(footer, 0)
        found = [_column(column, int(group[3])) for group in about[4] for column in group[1]]
        if any(not 0 <= each.start <= whole or not 0 <= each.stored <= whole for each in found):
            raise ValueError("a column outside of the file")
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as Parquet ({type(error).__name__}: {error}); make it again") from None
    return found


def _column(chunk: dict[int, Any], rows: int) -> Column:
    about = chunk[3]
    name = b".".join(about[3]).decode()
    return Column(name, rows, about[4] != 0, 11 in about, int(about[9]), int(about[7]), int(about[6]))


def offsets(path: Path, row_bytes: int) -> Int64[np.ndarray, " n"]:
    """Byte offset of each row's pixels in a file that `raw.write` made; a read of some bytes for each page.

    Raises:
        DataError: another layout than that of `raw.write`, a row without pixels, or a damaged page.
    """
    found = [np.zeros(0, np.int64)]
    images = [column for column in columns(path) if column.name == "image"]
    with open(path, "rb") as file:
        for column in images:
            if column.packed or column.dictionary or column.start + column.stored > os.fstat(file.fileno()).st_size:
                raise _unknown(path, f"compressed: {column.packed}, dictionary: {column.dictionary}, {column.stored} bytes")
            pages = list(_pages(file, path, column.start, column.start + column.stored, row_bytes))
            if sum(map(len, pages)) != column.rows:
                raise _unknown(path, f"pages of {sum(map(len, pages))} rows in a row group of {column.rows}")
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
        told = any(isinstance(value, bytes) for value in (about.get(5) or {}).values())
        if (kind, encoding, levels_encoding) != (0, 0, 3) or told:
            raise _unknown(path, f"a page of kind {kind}, encodings {encoding} and {levels_encoding}, statistics: {told}")
        levels = int.from_bytes(head[length : length + 4], "little")
        first, stop = start + length + 4 + levels, start + length + size
        if size != stored or num < 1 or stop > end or stop - first != num * row_bytes:
            raise _unknown(path, f"a page of {size} bytes for {num} images of {row_bytes}")
        yield first + row_bytes * np.arange(num, dtype=np.int64)
        start = stop


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
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
        else:
            fields[number], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of a kind: a number, bytes, a list or a struct; there is no map in what is read here."""
    if depth > MOST_DEPTH:
        raise ValueError("nested without end")
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 8:
        size, at = _plain_integer(data, at)
        if at + size > len(data):
            raise ValueError("a text beyond the end")
        return data[at : at + size], at + size
    if kind in (9, 10):
        size, of = divmod(data[at], 16)
        at += 1
        if size == 15:
            size, at = _plain_integer(data, at)
        if size > len(data) - at:
            raise ValueError("a list beyond the end")
        found = []
        for _ in range(size):
            value, at = (data[at] == 1, at + 1) if of in (1, 2) else _value(data, at, of, depth + 1)
            found.append(value)
        return found, at
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (3, 7):  # a byte, a number of 64 bits
        size = 1 if kind == 3 else 8
        return data[at : at + size], at + size
    raise ValueError(f"no field of kind {kind} stands in the headers that are read here")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A number of Thrift's compact protocol (zigzag), and where it ends."""
    value, at = _plain_integer(data, at)
    return value >> 1 ^ -(value & 1), at


def _plain_integer(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, 10 of them at most."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number without end")


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unknown(path: Path, what: str) -> DataError:
    return DataError(f"{path}: its pixels don't lie as synthgen writes them ({what}); run the job that made it again")
