"""Curves, images and tables as TensorBoard or CSV files, written by Lightning's own loggers.

They stand in the run folder's `logs/`, beside the stages and never in one: no log is part of a stage's files or fingerprint.
Nothing here fails a job: what can't be written is one line of warning, and the log is closed from there on.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synthgen import storage
from synthgen.errors import ConfigError

FOLDER = "logs"
"""Of a run folder."""
KINDS = ("tensorboard", "csv")
FLUSH_S = 2.0
"""Seconds between two flushes of TensorBoard's events, each of which takes longer than a step of a small network."""

log = logging.getLogger("synthgen")


def check(mode: str) -> None:
    """Refuses a kind of log whose library isn't there, before anything is computed.

    Raises:
        ConfigError: tracking=tensorboard without TensorBoard.
    """
    if mode == "tensorboard" and not find_spec("tensorboard"):
        raise ConfigError(
            "tracking=tensorboard needs TensorBoard, which isn't installed: pip install 'synthgen[tensorboard]', "
            "or tracking=csv, which needs nothing"
        )


def of_training(mode: str, run: Path, name: str) -> Log | None:
    """A new log of a training, in `run/logs/train/name`; None where the mode keeps none.

    Raises:
        ConfigError: see `check`.
    """
    return Log(mode, run / FOLDER / "train" / name) if mode in KINDS else None


def named(rates: Sequence[float]) -> dict[str, float]:
    """Learning rates of a training's optimisers by name.

    >>> named((0.001, 0.002))
    {'learning_rate': 0.001, 'learning_rate_2': 0.002}
    """
    return {f"learning_rate_{number}" if number > 1 else "learning_rate": rate for number, rate in enumerate(rates, 1)}


class Log:
    """A folder of TensorBoard events, or `metrics.csv` with tables and images beside it; what stood there before is removed.

    A training that is taken up again writes what it already knows once more, so that no step is there twice.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        check(kind)
        self.kind, self.folder = kind, Path(folder)
        self._logger: Any = None
        self._flushed = 0.0
        self._try(self._open)

    @property
    def on(self) -> bool:
        """Whether anything is written still."""
        return self._logger is not None

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Figures at a step; they can be read from the file at once, TensorBoard's within `FLUSH_S`."""

        def write(logger: Any) -> None:
            logger.log_metrics(dict(values), step)
            if self.kind == "csv":
                logger.save()
            elif time.monotonic() - self._flushed >= FLUSH_S:
                logger.experiment.flush()
                self._flushed = time.monotonic()

        self._try(write)

    def training(self, step: int, loss: float, rates: Sequence[float]) -> None:
        """Loss and learning rates of a step."""
        self.figures({"loss": loss, **named(rates)}, step)

    def image(self, name: str, png: bytes, step: int = 0) -> None:
        """A PNG at a step."""

        def write(logger: Any) -> None:
            if self.kind == "csv":
                storage.write_bytes(self.folder / "images" / f"{name}-step-{step:06d}.png", png)
                return
            import numpy as np
            from PIL import Image

            logger.experiment.add_image(name, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), step, dataformats="HWC")

        self._try(write)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell is a number, a text, or None."""

        def write(logger: Any) -> None:
            if self.kind == "csv":
                text = io.StringIO(newline="")
                csv.writer(text, lineterminator="\n").writerows([columns, *rows])
                storage.write_text(self.folder / "tables" / f"{name}.csv", text.getvalue())
            else:
                logger.experiment.add_text(name, _markdown(columns, rows), 0)

        self._try(write)

    def close(self) -> None:
        """Nothing is written after this."""
        self._try(lambda logger: logger.finalize("success"))
        self._logger = None

    def _open(self, _: Any) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        if self.kind == "csv":
            from pytorch_lightning.loggers import CSVLogger

            self._logger = CSVLogger(self.folder, name="", version="")
        else:
            from pytorch_lightning.loggers import TensorBoardLogger

            self._logger = TensorBoardLogger(self.folder, name="", version="", default_hp_metric=False)

    def _try(self, write: Callable[[Any], None]) -> None:
        if self._logger is None and write != self._open:
            return
        try:
            write(self._logger)
        except Exception as error:
            self._logger = None
            text = " ".join(str(error).split())[:200]
            log.warning("%s: no log from here on, and the job goes on: %s: %s", self.folder, type(error).__name__, text)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
