"""Records on disk -> one self-contained HTML page."""

from synthgen.report.page import build

__all__ = ["build"]
