"""Run folders -> the pages that tell of them, with the same content as data beside each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import StorageError
from synthgen.jobs.finished import FOLDER, OPENED
from synthgen.jobs.order import Order
from synthgen.report import make
from synthgen.report.compare import compared, page

PAGE, DATA, COMPARED = "index.html", "report.json", "compare.json"
RUN = "run.json"
"""Which stages a run has, and the sha256 of what it tells outside of them; where it stands, the run is whole."""
RUN_SCHEMA = "synthgen.run/3"
TOLD = ("verdict.json", "config.yaml", f"report/{PAGE}", f"report/{DATA}")


def make_report(order: Order, out: Path) -> Path:
    """Run folder -> report/index.html and report/report.json, from what stands on disk; run.json last.

    What of a run may go without harm isn't in it: what is kept to save time (`features-cache/`, `gain-networks/*/`), and logs.
    """
    order.progress.start("report", 1)
    path = out / "report" / PAGE
    report = make(out)
    storage.write_json(path.with_name(DATA), report.data)
    storage.write_text(path, report.html)
    files = {name: storage.entry_of(out / name) for name in TOLD if (out / name).is_file()}
    stages = sorted(found.parent.relative_to(out).as_posix() for found in out.rglob(storage.STAGE_MANIFEST))
    told = {"schema": RUN_SCHEMA, "files": files, "stages": stages, "opened": (out / FOLDER / OPENED).is_file()}
    storage.write_sealed(out / RUN, told)
    order.progress.finish("report", str(path))
    return path


def lockable(out: Path) -> Path | None:
    """The folder to hold while its page is written; one that isn't a run's is refused by its own message."""
    return out if (out / "verdict.json").is_file() else None


def compare(runs: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Finished runs side by side; with `out`, also as OUT/index.html and OUT/compare.json.

    Returns:
        `columns` and `rows` of texts for a table, `settings` that differ, `notes` on what else does, and `runs` with the
        figures behind them (see `report.compare.compared`).

    Raises:
        DataError: fewer than two runs, the same run twice, a run that isn't finished or can't be read.
        StorageError: `out` holds anything but an earlier comparison.
    """
    if out is not None and out.exists() and not (out / COMPARED).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: holds files that no comparison has written; give --out an empty or a new folder")
    found = compared(runs)
    if out is not None:
        storage.write_json(out / COMPARED, found)
        storage.write_text(out / PAGE, page(found))
    return found
