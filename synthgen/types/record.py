"""A record's JSON form, and the verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from synthgen.errors import DataError
from synthgen.types.fits import misfit

UNLABELLED = -1
"""The label of an image whose class is not known, or not to be looked at."""

Verdict = Literal["use", "reject", "insufficient evidence"]
GateDecision = Literal["accept", "reject", "insufficient evidence"]


class Record:
    """JSON form of a frozen dataclass: its fields beside `"schema": "synthgen.<name>/<version>"`."""

    SCHEMA: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, its schema first."""
        return {"schema": self.SCHEMA, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "record") -> Self:
        """Reads the JSON form back; `where` names the file in an error.

        Raises:
            DataError: another schema or version, a missing or an unknown field, a value of another type.
        """
        if not isinstance(data, Mapping):
            raise DataError(f"{where}: not a JSON object; was it written by synthgen?")
        found = data.get("schema")
        if found != cls.SCHEMA:
            raise DataError(f"{where}: the schema is {found!r}, expected {cls.SCHEMA!r}; was it written by another version?")
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        given = {key: value for key, value in data.items() if key != "schema"}
        if names != set(given):
            raise DataError(f"{where}: fields {sorted(names ^ set(given))} are missing or unknown in {cls.SCHEMA!r}")
        if wrong := misfit(given, cls):
            raise DataError(f"{where}: damaged: {wrong}; make it again")
        return cls(**cls._revive(given))

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        """JSON lists and dicts -> tuples and records, where a field has them."""
        return given
