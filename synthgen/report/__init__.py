"""Records on disk -> one self-contained HTML page, and the same content as data."""

from synthgen.report.page import Report, build, make

__all__ = ["Report", "build", "make"]
