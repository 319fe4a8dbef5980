"""Records on disk -> one self-contained HTML page, and the same content as data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.report.page import Report, build, make

__all__ = ["Report", "build", "make"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Those, imported when they are first used: how names are written (`wording`) costs nothing to import."""
        if name in __all__:
            from synthgen.report import page

            return getattr(page, name)
        raise AttributeError(f"module 'synthgen.report' has no attribute {name!r}")
