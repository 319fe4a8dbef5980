"""In which order samples leave: shuffled by the seed, and every shard with the class mix of the whole."""

from __future__ import annotations

import numpy as np

from synthgen import randomness
from synthgen.shapes import Int64


def arranged(labels: Int64[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, " n"]:
    """Rows in an order that the seed fixes, in which any stretch holds the classes in nearly the same proportions.

    The k-th of the n_c samples of a class, in random order, stands at (k + u_c) / n_c of the way, u_c uniform in [0, 1):
    of m neighbours a class has m n_c / n, to within 1.
    """
    rng = randomness.stream(seed, "export")
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows[rng.permutation(len(rows))]] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(place, kind="stable").astype(np.int64)
