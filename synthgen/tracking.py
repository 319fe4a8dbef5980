"""The run on a Weights & Biases dashboard: the only import of wandb. Off is a `Tracker` that does nothing.

A dashboard never fails a job: whatever goes wrong in wandb becomes one line of warning, and the tracker is off from
there on. The command line, the code, git, the host and the console stay out of the run's files and of what is sent; an
offline file says where on this machine the artifacts to be sent lie, since `wandb sync` needs that.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from synthgen.shapes import UInt8
from synthgen.types import GainReport

Mode = Literal["off", "offline", "online"]

FINISH_TIMEOUT_S = 60
"""A server that doesn't answer is not waited for any longer; the run's files stay and `wandb sync` sends them."""

log = logging.getLogger("synthgen")


class Tracker:
    """A run on the dashboard, or nothing at all where `run` is None."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    @property
    def on(self) -> bool:
        """Whether anything is recorded still."""
        return self._run is not None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures at a step; `step` is an axis of ours, so steps may come in any order."""
        self._try("log", lambda run: run.log({**values, "step": step}))

    def losses(self, model: str, losses: Sequence[Sequence[float]]) -> None:
        """A training curve of (step, loss) pairs, with an axis of its own."""

        def send(run: Any) -> None:
            run.define_metric(f"train/{model}/loss", step_metric=f"train/{model}/step")
            for step, loss in losses:
                run.log({f"train/{model}/loss": float(loss), f"train/{model}/step": int(step)})

        self._try("losses", send)

    def image(self, name: str, image: bytes | UInt8[np.ndarray, "h w c"], caption: str = "") -> None:
        """A picture: a PNG, or uint8 pixels of shape (h, w, c) with 1 or 3 channels."""

        def send(run: Any) -> None:
            import wandb

            picture = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(np.squeeze(image))
            run.log({name: wandb.Image(picture, caption=caption or None)})

        self._try("image", send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell is a number, a text, or None."""

        def send(run: Any) -> None:
            import wandb

            data = [list(row) for row in rows]
            run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

        self._try("table", send)

    def gain(self, report: GainReport) -> None:
        """A gain study: the learning curve on an axis of its own, tables of what else it found, and its summary."""
        for name, (columns, rows) in _gain_tables(report).items():
            self.table(f"gain/{name}", columns, rows)
        points = report.curve.points if report.curve else ()

        def send(run: Any) -> None:
            run.define_metric("gain/curve/accuracy", step_metric="gain/curve/num_real")
            for point in points:
                accuracy = sum(point.accuracies) / len(point.accuracies)
                run.log({"gain/curve/accuracy": accuracy, "gain/curve/num_real": point.num_real})

        if points:
            self._try("gain", send)
        first = next((i for i in report.intervals if (i.arm, i.baseline) == next(iter(report.decisive), None)), None)
        found = {"verdict": report.verdict, "best_real": report.best_real, "best_synthetic": report.best_synthetic}
        figures = {"difference": first.difference, "low": first.low, "high": first.high} if first else {}
        self.summary({f"gain/{name}": value for name, value in (found | figures).items()})

    def artifact(self, name: str, kind: str, folder: Path) -> None:
        """All files of a folder as an artifact; they are sent from where they are, not copied."""

        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, kind)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                artifact.add_file(str(path), path.relative_to(folder).as_posix(), policy="immutable")
            run.log_artifact(artifact)

        self._try("artifact", send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Fields that runs are sorted by."""
        self._try("summary", lambda run: run.summary.update(dict(values)))

    def finish(self, failed: bool = False) -> None:
        """Closes the run; what comes after is ignored."""
        self._try("finish", lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _try(self, what: str, send: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:
            _warn(what, error)
            self._run = None


@contextmanager
def open_run(mode: Mode, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """A tracker for the length of a `with` block; the run fails on the dashboard where the block raises.

    Args:
        mode: "off" imports nothing and writes nothing; "offline" is sent later by `wandb sync`.
        project: on the dashboard.
        name: of the run.
        folder: wandb's files go to its subfolder `wandb`.
        config: settings to show, as JSON types; of an absolute path only the last part is kept.
    """
    tracker = Tracker(_start(mode, project, name, folder, config) if mode != "off" else None)
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def _gain_tables(report: GainReport) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Name -> columns and rows; a part that the study hasn't is left out."""
    curve = report.curve
    found: dict[str, list[dict[str, Any]]] = {
        "intervals": [asdict(i) | {"decisive": (i.arm, i.baseline) in report.decisive} for i in report.intervals],
        "exchange": [asdict(e) for e in curve.exchange] if curve else [],
        "controls": [asdict(control) for control in report.controls],
        "classes": [asdict(c) for c in report.classes],
        "advice": [{"advice": line} for line in report.advice],
        "skipped": [{"arm": arm, "reason": why} for arm, why in report.skipped.items()],
    }
    return {name: (list(rows[0]), [list(row.values()) for row in rows]) for name, rows in found.items() if rows}


def _start(mode: Mode, project: str, name: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """A wandb run with nothing of the machine in it; None where wandb can't start."""
    try:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            mode=mode,
            project=project,
            run_name=name,
            root_dir=str(folder),
            silent=True,
            console="off",
            symlink=False,
            host="",
            program="synthgen",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=FINISH_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )
        run = wandb.init(config=_without_paths(dict(config)), settings=settings, reinit="create_new")
        run.define_metric("*", step_metric="step")
        return run
    except Exception as error:
        _warn("start", error)
        return None


def _without_paths(value: Any) -> Any:
    """The last part of every absolute path: a dashboard needn't know where things lie on this machine."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, (str, Path)):
        text = str(value)
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(text).is_absolute():
                return kind(text).name
        return text
    return value


def _warn(what: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:200]
    log.warning("Weights & Biases is off from here on, and the job goes on: %s: %s: %s", what, type(error).__name__, text)
