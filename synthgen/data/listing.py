"""What every layout of real images gives: its images in a stable order, with their labels, groups and origins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from synthgen.data.decoding import Content
from synthgen.data.names import shown
from synthgen.errors import DataError
from synthgen.shapes import Int64
from synthgen.types import UNLABELLED


class Source(NamedTuple):
    """Images in a stable order, a label each or `UNLABELLED`; `skipped` are files that aren't images (origin -> reason)."""

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    origins: list[str]
    contents: Iterator[Content]
    groups: list[str] | None = None
    given: list[str] | None = None
    skipped: dict[str, str] = {}  # noqa: RUF012  (a default that nobody writes to)


def labels_of(
    values: list[Any], names: tuple[str, ...] | None, where: str, may_lack: bool
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Labels 0..k-1 and class names, out of ints (with names or without) or strings.

    Where labels may lack, empty ones and -1 are `UNLABELLED`. With empty ones in it, a column of numbers is of floats.
    """
    if may_lack:
        values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    lacks = [may_lack and (value is None or value != value or value in (-1, "-1")) for value in values]
    known = [value for value, lack in zip(values, lacks, strict=True) if not lack]
    for row, value in enumerate(values):
        if not (lacks[row] or isinstance(value, int | str)):
            none = value is None or value != value
            remedy = "; if such images have no label, data.unlabelled=-1 takes them as unlabelled" if none else ""
            raise DataError(f"{where}: row {row} is {_short(value)}, expected a whole number or a text in every row{remedy}")
    if len({type(value) for value in known}) > 1:
        raise DataError(f"{where}: holds numbers and texts; expected one of both")
    if names is None:
        classes = sorted(set(known))
        names, index = tuple(str(value) for value in classes), {value: i for i, value in enumerate(classes)}
    elif known and isinstance(known[0], str):
        index = {name: i for i, name in enumerate(names)}
    else:
        index = {i: i for i in range(len(names))}
    if unknown := sorted(set(known) - set(index)):
        row = values.index(unknown[0])
        raise DataError(f"{where}: row {row} is {_short(unknown[0])}, and the {len(names)} classes are {_listed(names)}")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a class name stands twice in {_listed(names)}")
    labels = [UNLABELLED if lack else index[value] for value, lack in zip(values, lacks, strict=True)]
    return np.array(labels, dtype=np.int64), names


def groups_of(values: list[Any], where: str) -> list[str]:
    """A group for every image; None and NaN are none."""
    lacking = [row for row, value in enumerate(values) if value is None or value != value]
    if lacking:
        raise DataError(f"{where}: row {lacking[0]} has no group; every image needs one")
    return [str(value) for value in values]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text):,} characters)"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
    return f"{[shown(name, 60) for name in names[:20]]}{more}"
