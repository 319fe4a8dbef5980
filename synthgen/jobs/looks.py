"""What is looked at while a generator trains: held-out loss on val, the gate's metrics on the reference, copies of train."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from synthgen import extraction, randomness, sampling
from synthgen.choice import Finding
from synthgen.config.schema import RunConfig
from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.jobs import pools
from synthgen.jobs.gates import Judging
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.metrics.copies import copy_ratio
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.prdc import prdc
from synthgen.models import Generator
from synthgen.shapes import UInt8
from synthgen.types import Batch
from synthgen.workers import single_thread

FALSE_ALARM = 0.01
"""Share of held-out real images that the copy threshold takes for copies."""
LEAST_REFERENCE = 50
"""Reference images that the looks' metrics need."""
OTHER_NOISE = 2**40
"""Added to the seed: no sample that is looked at is a candidate, so the choice isn't made on what the gate will judge."""
COLUMNS, ROWS, LEAST_PX = 10, 20, 32
"""Of a grid of samples: images of a class, classes, and the size that smaller images are enlarged to."""
MOST_HELD_OUT = 2000
"""Held-out images that the copy threshold is calibrated on and compared with, val images whose loss is taken."""


class Looker:
    """(module, step) -> `Finding`; always the same samples' noise, labels and real images, so that looks are comparable.

    Nothing of the test set is used, and FID is never taken against the train fold, where a photocopier is perfect.
    """

    def __init__(self, order: Order, split: Split, networks: Path) -> None:
        config = order.config
        self.order, self.config, self.spec, self.train = order, config, split.spec, pools.with_pool(order, split)
        self.seconds = 0.0
        self.seen: Batch | None = None
        judging = Judging(order, split, networks)
        self.extractor = judging.extractor
        reference, val = split.role("reference"), split.role("val")
        self.reference = judging.features(reference).features
        self.held_out = self._some(reference, "held-out")
        self.val = self._some(val.take(val.labels >= 0), "val")
        own = split.on_disk("train").labels
        self.labels = sampling.label_plan(own, split.spec.num_classes, config.looks.num, "match", config.seed)
        self.seed = OTHER_NOISE + config.seed
        self.size = max(1, min(len(self.train), len(self.held_out) // 2))
        null = self._ratios(self.held_out.images, exclude_self=True)
        self.threshold = float(np.quantile(null, FALSE_ALARM, method="lower"))

    def picture(self) -> bytes:
        """The last look's samples as a grid, always of the same noise and labels; empty where they weren't finite."""
        return png(grid(self.seen)) if self.seen is not None else b""

    def __call__(self, module: Generator, step: int) -> Finding:
        started = time.perf_counter()
        with single_thread():  # the same bytes whatever the number of cores
            finding = self._look(module, step)
        self.seconds += time.perf_counter() - started
        return finding

    def _look(self, module: Generator, step: int) -> Finding:
        best: tuple[float, int, np.ndarray | None, Batch | None, dict[str, float]] | None = None
        for number in range(len(module.ema.networks)):
            module.ema.chosen = number
            losses = self._losses(module)
            drawn = None if losses is not None else self._samples(module)
            measured = self.measure(drawn) if drawn is not None else {}
            score = float(losses.mean()) if losses is not None else measured.get("fid", math.inf)
            if best is None or score < best[0]:
                best = score, number, losses, drawn, measured
        assert best is not None
        _, module.ema.chosen, losses, self.seen, measured = best
        values = {"average": float(module.ema.decays[module.ema.chosen])}
        if losses is not None:
            values["held_out_loss"] = round(float(losses.mean()), 6)
            self.seen = self._samples(module)
            measured = self.measure(self.seen) if self.seen is not None else {}
        values |= measured
        copies, most = values.get("copy_share", 0.0), self.config.looks.max_copy_share
        stop = f"{copies:.0%} of the samples at step {step} are copies of training images, at most {most:.0%}"
        return Finding(step, values, values.get("fid", math.inf), losses, stop if copies > most else "")

    def _samples(self, module: Generator) -> Batch | None:
        """This step's samples; None if they aren't finite."""
        own, device = self.config.generate, self.order.device
        batches = sampling.sample(
            module,
            self.labels,
            seed=self.seed,
            chunk=own.chunk,
            batch=own.batch,
            prefix="look",
            device=device,
            precision=own.precision,
        )
        try:
            return Batch.concatenate(list(batches))
        except DataError:  # not finite
            return None

    def measure(self, batch: Batch) -> dict[str, float]:
        """FID, precision, recall, density and coverage against the reference, and the share of copies of train."""
        features = extraction.extract(self.extractor, batch.images, self.order.device)
        found = prdc(self.reference, features, self.config.gate.neighbours)
        return {
            "fid": round(frechet_distance(self.reference, features), 6),
            "precision": found.precision,
            "recall": found.recall,
            "density": found.density,
            "coverage": found.coverage,
            "copy_share": float((self._ratios(batch.images) < self.threshold).mean()),
        }

    def _losses(self, module: Generator) -> np.ndarray | None:
        if not len(self.val):
            return None
        images, labels = torch.from_numpy(self.val.images), torch.from_numpy(self.val.labels)
        found = []
        for start in range(0, len(self.val), 256):
            rows = slice(start, start + 256)
            losses = module.held_out_loss(to_float(images[rows]).to(module.device), labels[rows].to(module.device))
            if losses is None:
                return None
            found.append(losses.double().cpu().numpy())
        return np.concatenate(found)

    def _ratios(self, images: np.ndarray, exclude_self: bool = False) -> np.ndarray:
        own = self.config.gate
        search = own.search_px, own.search_flip
        device = self.order.device
        match = copy_ratio(
            images, self.train.images, self.held_out.images, self.size, *search, exclude_self=exclude_self, device=device
        )
        return match.ratio.double().numpy()

    def _some(self, batch: Batch, name: str) -> Batch:
        rows = randomness.stream(self.config.seed, f"looks/{name}").permutation(len(batch))[:MOST_HELD_OUT]
        return batch.take(np.sort(rows))


def grid(batch: Batch) -> UInt8[np.ndarray, "h w c"]:
    """The first samples of each class, a class a row, as one image with 1 or 3 channels."""
    rows = []
    for label in np.unique(batch.labels)[:ROWS]:
        images = batch.images[batch.labels == label][:COLUMNS]
        padded = np.concatenate([images, np.zeros((COLUMNS - len(images), *images.shape[1:]), np.uint8)])
        rows.append(np.concatenate(list(padded), axis=2))
    return np.concatenate(rows, axis=1).transpose(1, 2, 0)


def png(pixels: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A grid as a PNG, its pixels enlarged where the images in it are tiny."""
    size = pixels.shape[1] // COLUMNS
    times = -(-LEAST_PX // size) if size < LEAST_PX else 1
    file = io.BytesIO()
    enlarged = pixels.repeat(times, axis=0).repeat(times, axis=1)
    Image.fromarray(enlarged[..., 0] if enlarged.shape[2] == 1 else enlarged).save(file, "PNG")
    return file.getvalue()


def seen_with(config: RunConfig) -> dict[str, Any]:
    """The settings of other jobs that a look depends on."""
    gate, features = config.gate, config.features
    return {
        "chunk": config.generate.chunk,
        "precision": config.generate.precision,
        **{name: getattr(gate, name) for name in ("neighbours", "search_px", "search_flip")},
        **{name: getattr(features, name) for name in ("extractor", "size_px")},
    }


def check_looks(split: Split) -> None:
    """Refuses to train for hours what can't be looked at.

    Raises:
        DataError: too few reference images.
    """
    num = len(split.role("reference"))
    if num < LEAST_REFERENCE:
        raise DataError(
            f"split.reference: {num} images, and the looks in training need {LEAST_REFERENCE}; give more, or "
            "looks.times=0 to keep the last step unseen"
        )


def look_steps(steps: int, times: int) -> tuple[int, ...]:
    """After which steps: `times` of them, evenly spread, the last one included."""
    return tuple(sorted({max(1, round(steps * (number + 1) / times)) for number in range(times)}))
