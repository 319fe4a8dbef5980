"""How figures and names are written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MINUS = "\u2212"


def num(value: Any, digits: int = 4) -> str:
    """A number with thousands and a true minus sign; "—" for none."""
    if not isinstance(value, (int, float)) or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", MINUS)


def signed(value: Any, decimals: int = 2) -> str:
    """A difference with its sign."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "—"
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def interval(pair: Sequence[Any], decimals: int = 2) -> str:
    """ "low to high", or "—"."""
    low, high = (signed(value, decimals) for value in pair)
    return "—" if "—" in (low, high) else f"{low} to {high}"


def pct(value: Any, decimals: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * value:.{decimals}f}%" if isinstance(value, (int, float)) and math.isfinite(value) else "—"


def chance(p: Any) -> str:
    """A p-value: 0.032, or "<0.001"."""
    if not isinstance(p, (int, float)) or not math.isfinite(p):
        return "—"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 0.42 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "—"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def words(name: str) -> str:
    """`label_agreement` as "label agreement"."""
    return name.replace("_", " ")
