"""Whether a JSON value is of a type: what came from a file is looked at before anybody relies on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST_INT = 2**63 - 1
NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def misfit(value: Any, kind: Any, where: str = "") -> str:
    """What keeps a JSON value from being of a type, as a sentence without its end; "" if nothing does.

    Args:
        value: as `json.loads` gives it.
        kind: str, int, float, bool, None, Any, a Literal, a union, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`,
            a dataclass (exactly its fields) or a TypedDict (its required fields, and any others).
        where: what the value is called.

    Examples:
        >>> misfit({"a": [1, "2"]}, dict[str, tuple[int, ...]])
        "a[1] is '2', expected a whole number"
        >>> misfit(float("nan"), float | None, "loss")
        'loss is nan, expected a number or null'
    """
    origin = get_origin(kind)
    if kind is Any:
        return ""
    if origin in (Union, UnionType):
        return _of_union(value, kind, where)
    if origin in (tuple, list):
        return _of_list(value, kind, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _wrong(value, "an object", where)
        return _first(_text(key, where) or misfit(item, get_args(kind)[1], _inside(where, key)) for key, item in value.items())
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _of_fields(value, kind, where)
    if origin is Literal:
        return "" if isinstance(value, str) and value in get_args(kind) else _wrong(value, _named(kind), where)
    return "" if _is_plain(value, kind) else _wrong(value, _named(kind), where)


def _is_plain(value: Any, kind: Any) -> bool:
    if kind in (None, NoneType):
        return value is None
    if kind is str:
        return isinstance(value, str) and not _text(value, "")
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST_INT
    return kind is float and isinstance(value, float) and math.isfinite(value)


def _text(value: str, where: str) -> str:
    """A text that no file can hold: half of a character that takes two."""
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return f"{where or 'a text'} holds half a character: {value[:40]!r}"
    return ""


def _of_union(value: Any, kind: Any, where: str) -> str:
    members = get_args(kind)
    wrong = [misfit(value, member, where) for member in members]
    if "" in wrong:
        return ""
    nested = [line for line, member in zip(wrong, members, strict=True) if member is not NoneType]
    return nested[0] if len(nested) == 1 and isinstance(value, (dict, list)) else _wrong(value, _named(kind), where)


def _of_list(value: Any, kind: Any, where: str) -> str:
    of = get_args(kind)
    if not isinstance(value, (list, tuple)):
        return _wrong(value, "a list", where)
    if get_origin(kind) is tuple and of[-1] is not Ellipsis:
        if len(value) != len(of):
            return f"{where or 'the list'} has {len(value)} entries, expected {len(of)}"
        return _first(misfit(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(value, of, strict=True)))
    return _first(misfit(item, of[0], f"{where}[{i}]") for i, item in enumerate(value))


def _of_fields(value: Any, kind: Any, where: str) -> str:
    if not isinstance(value, dict):
        return _wrong(value, "an object", where)
    fields, required = _fields(kind)
    strange = required - value.keys() or (value.keys() - fields.keys() if dataclasses.is_dataclass(kind) else ())
    if strange:
        return f"{_inside(where, min(map(str, strange)))} is missing or unknown"
    return _first(misfit(value[name], of, _inside(where, name)) for name, of in fields.items() if name in value)


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of the fields, and which of them must be there."""
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        return hints, kind.__required_keys__
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return fields, frozenset(fields)


def _first(lines: Any) -> str:
    return next((line for line in lines if line), "")


def _inside(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_named(member) for member in get_args(kind))
    return NAMES.get(NoneType if kind is None else kind, "a list" if get_origin(kind) in (tuple, list) else "an object")


def _wrong(value: Any, expected: str, where: str) -> str:
    found = value if isinstance(value, (str, int, float, NoneType)) and len(repr(value)) < 60 else None
    shown = repr(found) if found is not None or value is None else f"a {type(value).__name__}"
    return f"{where or 'it'} is {shown.replace('None', 'null')}, expected {expected}"
