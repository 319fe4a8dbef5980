"""Which images are held out together: folds that spread the classes evenly and cut no group."""

from __future__ import annotations

import numpy as np

from synthgen.randomness import stream
from synthgen.shapes import Int64


def folds(
    labels: Int64[np.ndarray, " n"], num: int, seed: int, name: str, groups: np.ndarray | None = None
) -> Int64[np.ndarray, " n"]:
    """A fold of 0 .. num - 1 for each row, or -1: held out in none, because a class would be without a row to learn from.

    Every class is dealt to the folds in turn, in an order fixed by (seed, name). Groups go as a whole to where they even
    out the classes most, the largest first.
    """
    draws, label = stream(seed, name), np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(label)
    if groups is None:
        order = np.lexsort((draws.random(len(labels)), label))
        fold = np.empty(len(labels), np.int64)
        fold[order] = np.arange(len(labels)) % num
        return np.where(sizes[label] > 1, fold, -1)
    group = np.unique(groups, return_inverse=True)[1].reshape(-1)
    counts = np.zeros((group.max() + 1, len(sizes)))
    np.add.at(counts, (group, label), 1)
    of_group, filled = np.full(len(counts), -1), np.zeros((num, len(sizes)))
    for each in np.lexsort((draws.random(len(counts)), -counts.sum(1))):
        after = filled + counts[each]
        crowding = (after**2 - filled**2) @ (1 / sizes**2)
        crowding[((after == sizes) & (counts[each] > 0)).any(1)] = np.inf  # all there is of a class
        if np.isinf(crowding).all():
            continue
        of_group[each] = crowding.argmin()
        filled[of_group[each]] += counts[each]
    return of_group[group]
