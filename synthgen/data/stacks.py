"""Batches for several networks that are trained side by side, each with its own rows, labels and order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.randomness import stream
from synthgen.shapes import Float, UInt8


@dataclass(frozen=True)
class Source:
    """Images that every batch holds some of.

    Attributes:
        images: shared by all networks.
        rows: for each network, the rows of `images` that it draws from.
        targets: for each network, the class probabilities of those rows, float32 of shape (m, k); None for unlabelled images.
        count: rows of a batch.
    """

    images: UInt8[np.ndarray, "n c h w"]
    rows: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...] | None
    count: int

    @staticmethod
    def shared(images: np.ndarray, targets: np.ndarray, networks: int, count: int) -> Source:
        """The same images with the same targets for every network."""
        rows = np.arange(len(images))
        return Source(images, (rows,) * networks, (targets,) * networks, count)


def one_hot(labels: np.ndarray, num_classes: int) -> Float[np.ndarray, "n k"]:
    """Class probabilities of known labels.

    Raises:
        DataError: a label outside of 0..k-1.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)][0]
        raise DataError(f"label {wrong}: images to train on need a label of 0 to {num_classes - 1}; leave the others out")
    return np.eye(num_classes, dtype=np.float32)[labels]


class StackBatch(NamedTuple):
    """A step's images for s networks.

    Attributes:
        images: in [-1, 1], shape (s, b, c, h, w).
        targets: class probabilities, shape (s, b, k).
        unlabelled: images without a label, shape (s, u, c, h, w); None where there are none.
    """

    images: Tensor
    targets: Tensor
    unlabelled: Tensor | None


class Stack(Dataset):
    """The batch of a step for every network: network i's part is fixed by (its seed, step) and nothing of the others'.

    Each source's rows are drawn without replacement from a permutation per pass, as `training.Keyed` draws them.

    Args:
        sources: one or more with targets, at most one without.
        seeds: of the networks' orders.
        device: where the images are kept.
    """

    def __init__(self, sources: Sequence[Source], seeds: Sequence[int], device: str = "cpu") -> None:
        for source in sources:
            short = [i for i, rows in enumerate(source.rows) if not len(rows)]
            if len(source.rows) != len(seeds) or short:
                raise DataError(f"{len(seeds)} networks need as many sets of rows, none empty; found {len(source.rows)}")
        self.sources, self.seeds = list(sources), list(seeds)
        self.images = [torch.from_numpy(np.ascontiguousarray(s.images)).to(device) for s in sources]
        self.rows = [[torch.from_numpy(rows).to(device) for rows in s.rows] for s in sources]
        self.targets = [None if s.targets is None else [torch.from_numpy(t).to(device) for t in s.targets] for s in sources]
        self._orders: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def __getitem__(self, step: int) -> StackBatch:
        images, targets, unlabelled = [], [], None
        for number in range(len(self.sources)):
            places = [self._places(number, network, step) for network in range(len(self.seeds))]
            rows = torch.stack([rows[at] for rows, at in zip(self.rows[number], places, strict=True)])
            found = to_float(self.images[number][rows.flatten()]).unflatten(0, rows.shape)
            own = self.targets[number]
            if own is None:
                unlabelled = found
                continue
            images.append(found)
            targets.append(torch.stack([target[at] for target, at in zip(own, places, strict=True)]))
        return StackBatch(torch.cat(images, dim=1), torch.cat(targets, dim=1), unlabelled)

    def close(self) -> None:
        """Nothing to end: everything is held."""

    def _places(self, number: int, network: int, step: int) -> Tensor:
        """Where in a network's rows of a source the step's rows stand."""
        count, size = self.sources[number].count, len(self.rows[number][network])
        parts, at, end = [], step * count, (step + 1) * count
        while at < end:
            lap, first = divmod(at, size)
            last = min(size, first + end - at)
            parts.append(self._order(number, network, lap)[first:last])
            at += last - first
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _order(self, number: int, network: int, lap: int) -> Tensor:
        known = self._orders.get((number, network))
        if known is None or known[0] != lap:
            size = len(self.rows[number][network])
            order = stream(self.seeds[network], f"order/{number}", lap).permutation(size)
            known = lap, torch.from_numpy(order).to(self.images[number].device)
            self._orders[number, network] = known
        return known[1]
