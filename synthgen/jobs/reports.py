"""Run folders -> the pages that tell of them, with the same content as data beside each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import StorageError
from synthgen.jobs.order import Order
from synthgen.report import make
from synthgen.report.compare import compared, page

PAGE, DATA, COMPARED = "index.html", "report.json", "compare.json"
RUN = "run.json"
"""sha256 of what a run tells outside of its stages; where it stands, the run is whole."""
TOLD = ("verdict.json", "config.yaml", f"report/{PAGE}", f"report/{DATA}")


def make_report(order: Order, out: Path) -> Path:
    """Run folder -> report/index.html and report/report.json, from what stands on disk; run.json last, with their sha256."""
    order.progress.start("report", 1)
    path = out / "report" / PAGE
    report = make(out)
    storage.write_json(path.with_name(DATA), report.data)
    storage.write_text(path, report.html)
    files = {name: storage.entry_of(out / name) for name in TOLD if (out / name).is_file()}
    storage.write_sealed(out / RUN, {"schema": "synthgen.run/2", "files": files})
    order.progress.finish("report", str(path))
    return path


def compare(runs: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Finished runs side by side; with `out`, also as OUT/index.html and OUT/compare.json.

    Returns:
        `columns` and `rows` of texts for a table, `settings` that differ, `notes` on what else does, and `runs` with the
        figures behind them (see `report.compare.compared`).

    Raises:
        DataError: fewer than two runs, the same run twice, a run that isn't finished or can't be read.
        StorageError: `out` is a run folder itself.
    """
    if out is not None and (out / "verdict.json").exists():
        raise StorageError(f"{out}: is a run folder, which a comparison would write into; give --out another folder")
    found = compared(runs)
    if out is not None:
        storage.write_json(out / COMPARED, found)
        storage.write_text(out / PAGE, page(found))
    return found
