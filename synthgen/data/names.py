"""Names of classes and files: how any name can be shown, and which ones no class may have."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from synthgen.errors import DataError

MAX_NAME = 200
"""Characters of a class's name: more is a text that was taken for a label."""

TURNING = frozenset("\u200b\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""The first three aren't seen at all. The others turn what is written after them about, beyond the name itself (Unicode
annex 9); the marks U+200E and U+200F don't."""


def shown(text: str, most: int = 0) -> str:
    r"""A text with what a terminal would obey, what isn't text and what turns a line about written out.

    Args:
        text: a name, a path.
        most: characters beyond which the middle is left out; 0 shows all.

    >>> print(shown("cat\x1b[31m\n.png"))
    cat\x1b[31m\x0a.png
    """
    plain = "".join(_written_out(c) if _is_command(c) else c for c in text)
    return plain if not most or len(plain) <= most else f"{plain[: most // 2]}...{plain[-(most // 2) :]}"


def _is_command(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in TURNING


def _written_out(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuses names that can't be shown and written everywhere, and two that only a computer tells apart.

    Raises:
        DataError: an empty name, a very long one, one with control characters; two that are the same text to a reader.
    """
    known: dict[str, str] = {}
    for name in names:
        what = _fault(name)
        if what:
            raise DataError(f"{where}: the class name '{shown(name, 60)}' {what}; give the class another name")
        same = unicodedata.normalize("NFC", name)
        if same in known:
            raise DataError(
                f"{where}: two classes are called '{same}', in two Unicode forms ({known[same]!a} and {name!a}); "
                "make them one, or give one another name"
            )
        known[same] = name


def _fault(name: str) -> str:
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"has {len(name):,} characters, at most {MAX_NAME} are allowed"
    if any(unicodedata.category(c) == "Cs" for c in name):
        return "isn't text (not UTF-8)"
    if any(_is_command(c) for c in name):
        return "holds control characters"
    return ""
