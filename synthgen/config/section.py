"""What every section of the settings is: frozen, and refusing what it doesn't know."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, infinity, NaN, and true or false for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_truth(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("expected another value than true or false")
        return value


def _takes_truth(kind: Any) -> bool:
    return kind in (bool, Any) or any(isinstance(part, bool) or _takes_truth(part) for part in get_args(kind))
