"""One Lightning Trainer set-up for any module of the factory: keyed batches, atomic checkpoints, exact resumption.

Batch `step` is fixed by (seed, step) and so is every random number a module draws, so a run that was killed goes on
from its last checkpoint as if nothing had happened, bit for bit on one platform.
"""

from __future__ import annotations

import copy
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from synthgen import preemption, randomness, storage
from synthgen.checkpoints import AtomicCheckpointIO, NotFinite, finite, newest
from synthgen.choice import Choice, Finding
from synthgen.data.stacks import Stack
from synthgen.data.transforms import to_float
from synthgen.errors import ConfigError, DataError, TrainingError
from synthgen.logs import Log
from synthgen.models.base import put
from synthgen.types import UNLABELLED, Progress

# Lightning's notes on hardware and on loaders with few workers aren't for our users
for _name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)

EPOCH = 50
"""Steps of one Lightning epoch: checkpoints are taken between epochs."""


@dataclass(frozen=True)
class Fit:
    """What training leaves behind.

    Attributes:
        losses: (step, loss) pairs.
        seconds: wall time.
        looks: what was found at each look.
        step: the step whose weights the module has.
        kept: whether these are weights that a look has approved of, or that nobody looked at; False where every look refused.
        stopped: why training ended before its time; empty if it didn't.
        rates: learning rates of the optimisers' groups, at each of the steps of `losses`.
        pictures: step of a look -> PNG of its samples; those that were taken where a `folder` was given.
    """

    losses: tuple[tuple[int, float], ...]
    seconds: float
    looks: tuple[Finding, ...] = ()
    step: int = 0
    stopped: str = ""
    kept: bool = True
    rates: tuple[tuple[float, ...], ...] = ()
    pictures: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """When to look at a module in training.

    Attributes:
        look: (module, step) -> what was found; changes nothing in the module but which average is chosen.
        steps: after which steps.
        tolerance: see `Choice`.
        picture: a PNG of what the last look saw, empty where it saw nothing; None takes no pictures.
    """

    look: Callable[[Any, int], Finding]
    steps: tuple[int, ...]
    tolerance: float = 2.0
    picture: Callable[[], bytes] | None = None


@runtime_checkable
class Images(Protocol):
    """uint8 images `n c h w` of which rows can be taken: an array, or a file that reads them (`shards.pages.Rows`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@runtime_checkable
class Source(Protocol):
    """Labelled images to train on: a `Batch`, or `shards.raw.OnDisk`."""

    @property
    def images(self) -> Images: ...

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


RESIDENT_BYTES = 2**30
"""Pixels that training on the CPU holds in memory; what is more is read as it is needed."""


def resident_bytes(device: torch.device) -> int:
    """Pixels that may be held on a device: of a GPU, half of the memory that is free."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else RESIDENT_BYTES


class ReadAhead:
    """`read(step)` for one step after the other: while one is used, the next is read in a thread of its own.

    What `read` raises for a step is raised where that step is asked for. Steps may come in any order; only the next one is
    there at once.
    """

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read, self.thread = read, ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self.next: tuple[int, Future[Any]] | None = None

    def __call__(self, step: int) -> Any:
        due = self.next[1] if self.next and self.next[0] == step else self.thread.submit(self.read, step)
        found = due.result()
        self.next = step + 1, self.thread.submit(self.read, step + 1)
        return found

    def close(self) -> None:
        """Ends the thread, after what it is reading."""
        self.thread.shutdown(cancel_futures=True)


class Keyed(Dataset):
    """The batch of a step: images in [-1, 1] and labels, fixed by (seed, step).

    Each source's rows are drawn without replacement from a permutation per pass. With several sources, a batch holds
    the given number of rows of each (real and synthetic, say).

    Sources are held on the device as uint8, as many as `resident_bytes` allows. Of the others each batch is read from where
    they are, a step ahead of its use; the batches are the same bytes. `close` ends that.
    """

    def __init__(self, sources: Sequence[tuple[Source, int]], seed: int, device: torch.device) -> None:
        self.counts = [count for _, count in sources]
        self.images: list[Tensor | Images] = []
        left = resident_bytes(device)
        for batch, _ in sources:
            fits = batch.images.nbytes <= left
            left -= batch.images.nbytes if fits else 0
            self.images.append(_held(batch.images, device) if fits else batch.images)
        self.labels = [torch.from_numpy(batch.labels).to(device) for batch, _ in sources]
        self.seed, self.device = seed, device
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self.ahead = None if all(isinstance(images, Tensor) for images in self.images) else ReadAhead(self._drawn)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        drawn = self._drawn(step) if self.ahead is None else self.ahead(step)
        parts = [
            (to_float(images[rows] if isinstance(images, Tensor) else read), labels[rows])
            for images, labels, (rows, read) in zip(self.images, self.labels, drawn, strict=True)
        ]
        images, labels = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(labels)

    def close(self) -> None:
        """Leaves no thread behind; no batch can be had after it where one was needed."""
        if self.ahead is not None:
            self.ahead.close()

    def _drawn(self, step: int) -> list[tuple[Tensor, Tensor | None]]:
        """A step's rows of each source and, of those that aren't held, their pixels."""
        drawn: list[tuple[Tensor, Tensor | None]] = []
        for source, images in enumerate(self.images):
            rows = self._rows(source, step)
            read = None if isinstance(images, Tensor) else put(np.ascontiguousarray(images[rows]), self.device)
            drawn.append((put(rows, self.device), read))
        return drawn

    def _rows(self, source: int, step: int) -> np.ndarray:
        size, count = len(self.labels[source]), self.counts[source]
        places = np.arange(step * count, (step + 1) * count)
        rows = np.empty(count, dtype=np.int64)
        for lap in np.unique(places // size):
            here = places // size == lap
            rows[here] = self._order(source, int(lap))[places[here] % size]
        return rows

    def _order(self, source: int, lap: int) -> np.ndarray:
        if (source, lap) not in self._orders:
            for old in [key for key in self._orders if key[0] == source and key[1] < lap - 1]:
                del self._orders[old]
            draws = randomness.stream(self.seed, f"order/{source}", lap)
            self._orders[source, lap] = draws.permutation(len(self.labels[source]))
        return self._orders[source, lap]


def _held(images: Images, device: torch.device) -> Tensor:
    """All images on a device; those of a file piece by piece, without a copy of them all beside it."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(images)).to(device)
    held = torch.empty(images.shape, dtype=torch.uint8, device=device)
    size = max(1, 2**24 // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(held), size):
        held[start : start + size] = torch.from_numpy(images[start : start + size])
    return held


class Steps(Sampler[int]):
    """Step numbers of one Lightning epoch, from `first` to `steps`; Lightning calls `set_epoch`.

    An epoch has `EPOCH` steps at most and ends where something is due after a step (`pauses`), since only between epochs
    have all hooks of a step run.
    """

    def __init__(self, first: int, steps: int, pauses: tuple[int, ...] = ()) -> None:
        due = {step for step in (*pauses, steps) if first < step <= steps}
        self.bounds = sorted({*range(first, steps, EPOCH), *due})
        self.epoch = 0

    @property
    def epochs(self) -> int:
        return len(self.bounds) - 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._range())

    def __len__(self) -> int:
        return len(self._range())

    def _range(self) -> range:
        return range(*self.bounds[self.epoch : self.epoch + 2]) if self.epoch < self.epochs else range(0)


class Watch(pl.Callback):
    """Records loss and learning rates, tells who watches, stops on a loss that isn't finite, and saves for resumption."""

    def __init__(
        self,
        task: str,
        steps: int,
        progress: Progress,
        folder: Path | None,
        save_every_s: float,
        resume: dict[str, Any] | None,
        looks: Looks | None = None,
        sampler: Steps | None = None,
        log: Log | None = None,
    ) -> None:
        self.task, self.progress, self.folder, self.save_every_s, self.resume = task, progress, folder, save_every_s, resume
        self.steps, self.every, self.sampler = steps, max(1, steps // 100), sampler
        self.looks, self.choice = looks, Choice(looks.tolerance if looks else 0.0)
        self.losses: list[tuple[int, float]] = []
        self.rates: list[tuple[float, ...]] = []
        self.written, self.now = log, tuple[float, ...]()
        self.done, self.shown, self.saves, self.saved_at = 0, 0, 0, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Takes up a checkpoint: weights, optimisers, schedules, counters.

        Not through Lightning's `ckpt_path`: a checkpoint between epochs makes its loop repeat a batch (2.6).
        """
        preemption.listen_again()  # Lightning's handler would end training at once, unsaved
        if self.resume is None:
            return
        module.load_state_dict(self.resume["state_dict"])
        module.on_load_checkpoint(self.resume)
        for optimizer, state in zip(trainer.optimizers, self.resume["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for schedule, state in zip(trainer.lr_scheduler_configs, self.resume["lr_schedulers"], strict=True):
            schedule.scheduler.load_state_dict(state)
        self.load_state_dict(self.resume["callbacks"][self.state_key])
        self.progress.advance(self.task, self.done)
        self.shown = self.done
        if self.written:  # it begins anew: what came after this checkpoint comes again
            for (step, loss), rates in zip(self.losses, self.rates, strict=True):
                self.written.training(step, loss, rates)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        # before the step: the schedules have moved on when it is over
        self.now = tuple(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.done += 1
        # by the step alone: where a run that was interrupted ends its epochs is no part of its record
        if self.done % self.every == 0 or self.done == self.steps or (self.looks and self.done in self.looks.steps):
            self._note(trainer, float(outputs["loss"]))
        if preemption.asked():
            trainer.should_stop = True  # ends the epoch, between which checkpoints are taken

    def _note(self, trainer: pl.Trainer, loss: float) -> None:
        if not np.isfinite(loss):
            self._fail(trainer, f"the loss is {loss} at step {self.done}")
            return
        self.losses.append((self.done, round(loss, 6)))
        self.rates.append(self.now)
        if self.written:
            self.written.training(*self.losses[-1], self.now)
        self.progress.advance(self.task, self.done - self.shown, f"loss {loss:.3f}")
        self.shown = self.done

    def _fail(self, trainer: pl.Trainer, problem: str) -> None:
        """Ends training, with the weights of the best look if there is one."""
        if self.choice.kept is None:
            raise TrainingError(f"{self.task}: {problem}; lower its lr, or check the images")
        self.choice.stopped, trainer.should_stop = problem, True

    def _look(self, trainer: pl.Trainer, module: Any) -> None:
        assert self.looks is not None
        module.eval()
        finding = self.looks.look(module, self.done)
        module.train()
        if self.folder and self.looks.picture and (png := self.looks.picture()):
            storage.write_bytes(_picture(self.folder, self.done), png)
        self.choice.consider(finding, lambda: copy.deepcopy(module.state_dict()))
        if self.choice.stopped:
            trainer.should_stop = True

    def leave(self, module: Any) -> int:
        """Gives the module the weights that are kept, and says of which step they are."""
        if self.choice.kept is None:
            return self.done
        module.load_state_dict(self.choice.weights)
        module.step = self.choice.findings[self.choice.kept].step
        return int(module.step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.sampler:  # Lightning asks for the next epoch's length before it says which one it is
            self.sampler.set_epoch(trainer.current_epoch + 1)
        if self.looks and self.done in self.looks.steps and not self.choice.stopped:
            self._look(trainer, module)
        if self.done == self.steps or self.choice.stopped:  # no hook runs where no step is left: it couldn't be taken up
            return
        if self.folder and (preemption.asked() or time.monotonic() - self.saved_at >= self.save_every_s):
            try:
                trainer.save_checkpoint(self.folder / f"{storage.RESUME}-{self.saves % 2}.ckpt")
            except NotFinite as where:
                self._fail(trainer, f"a number in {where} is no longer finite at step {self.done}")
                return
            self.saves, self.saved_at = self.saves + 1, time.monotonic()
        preemption.check()

    @property
    def state_key(self) -> str:
        return "Watch"

    def state_dict(self) -> dict[str, Any]:
        curve = {"losses": [list(pair) for pair in self.losses], "rates": [list(rates) for rates in self.rates]}
        return {**curve, "done": self.done, "saves": self.saves + 1, "choice": self.choice.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.rates = [tuple(rates) for rates in state.get("rates", [()] * len(self.losses))]  # older checkpoints have none
        self.done, self.saves = state["done"], state["saves"]
        self.choice.load_state_dict(state["choice"])


def fit(
    module: pl.LightningModule,
    sources: Sequence[tuple[Source, int]] | Stack,
    *,
    steps: int,
    seed: int,
    task: str,
    progress: Progress,
    device: str = "cpu",
    precision: str = "32-true",
    folder: Path | None = None,
    save_every_s: float = 30.0,
    looks: Looks | None = None,
    log: Log | None = None,
) -> Fit:
    """Trains a module for `steps` steps on batches of labelled images.

    Args:
        module: trained in place, left on the CPU in eval mode.
        sources: (images, rows of them in each batch); several where a batch mixes real and synthetic. What is too large
            for `resident_bytes` is read batch by batch. Or the batches of several networks side by side.
        steps: training steps in all, those before a resumption included.
        seed: of the order of the data.
        task: what the progress calls it.
        device: "cpu" or "cuda".
        precision: Lightning's.
        folder: where checkpoints for resumption go (`resume-*.ckpt`); None keeps none.
        save_every_s: seconds between checkpoints.
        looks: when the module is looked at; it then leaves with the weights of the best look, and training may end early.
        log: gets loss and learning rates as they come, and is closed at the end.

    Raises:
        DataError: an empty source, or an image without a label.
        TrainingError: the loss or a weight is no longer finite, and no look has kept weights from before.
    """
    for batch, _ in () if isinstance(sources, Stack) else sources:
        if not len(batch):
            raise DataError(f"{task}: no images to train on")
        if (batch.labels == UNLABELLED).any():
            raise DataError(f"{task}: {int((batch.labels == UNLABELLED).sum())} images have no label; leave them out")
    started = time.perf_counter()
    resume = newest(folder)
    first = resume["callbacks"]["Watch"]["done"] if resume else 0
    sampler = Steps(first, steps, looks.steps if looks else ())
    watch = Watch(task, steps, progress, folder, save_every_s, resume, looks, sampler, log)
    progress.start(task, steps)
    batches = sources if isinstance(sources, Stack) else Keyed(sources, seed, torch.device(device))
    with closing(batches) as data, warnings.catch_warnings():
        loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=0, collate_fn=_as_is)
        warnings.filterwarnings("ignore", category=UserWarning)  # advice about loader workers and logging intervals
        warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning|lightning_fabric")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="pytorch_lightning|lightning_fabric")
        trainer = pl.Trainer(
            max_epochs=sampler.epochs,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            plugins=[AtomicCheckpointIO()],
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )
        interrupted = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loader)
        except SIGTERMException:  # came before the first step
            preemption.check()
            raise
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # to Ctrl-C Lightning ends the process, deaf to any other
                signal.signal(signal.SIGINT, interrupted)
                raise KeyboardInterrupt from None
            raise
    if log:
        log.close()
    module.cpu()
    step = watch.leave(module)
    if not finite(module.state_dict()):
        raise TrainingError(f"{task}: a weight is no longer finite after {steps} steps; lower its lr")
    module.eval()
    findings = tuple(watch.choice.findings)
    kept = not findings or watch.choice.kept is not None
    seen = {look.step: _picture(folder, look.step) for look in findings} if folder else {}
    pictures = {look: path.read_bytes() for look, path in seen.items() if path.is_file()}
    spent = time.perf_counter() - started
    return Fit(tuple(watch.losses), spent, findings, step, watch.choice.stopped, kept, tuple(watch.rates), pictures)


def _picture(folder: Path, step: int) -> Path:
    """Survives a kill as the checkpoints do."""
    return folder / f"{storage.RESUME}-look-{step:06d}.png"


def _as_is(batch: Any) -> Any:
    return batch


def pick_device(asked: str) -> str:
    """The device to use: what was asked for, never another in silence.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda was asked for, but torch finds no CUDA device; use device=cpu or install a CUDA build")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return asked
