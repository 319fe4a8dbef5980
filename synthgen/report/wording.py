"""How figures and names are written for people."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

MINUS = "\u2212"
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Characters that can't be seen, or that turn the text around them: a name that holds one must not look like another."""
LABEL_CHARS = 44


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


def visible(text: str) -> str:
    """The text with what can't be seen written out: a control character, a turn of direction, half a surrogate pair.

    >>> visible("a\\x1b[31m\\u202egnp.exe")
    'a\\\\x1b[31m\\\\u202egnp.exe'
    """
    return UNSEEN.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def shorten(text: str, limit: int = LABEL_CHARS) -> str:
    """The text, or its two ends around "…" where it is too long for a label of a figure."""
    text = visible(text)
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"
