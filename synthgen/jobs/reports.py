"""Run folder -> the page that tells of it."""

from __future__ import annotations

from pathlib import Path

from synthgen import storage
from synthgen.jobs.order import Order
from synthgen.report import build


def make_report(order: Order, out: Path) -> Path:
    """Run folder -> report/index.html, from what stands on disk."""
    order.progress.start("report", 1)
    path = out / "report" / "index.html"
    storage.write_text(path, build(out))
    order.progress.finish("report", str(path))
    return path
