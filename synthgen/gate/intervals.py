"""Intervals of shares and of shifts between two samples."""

from __future__ import annotations

import math

import numpy as np

from synthgen.shapes import Float


def wilson(hits: float, n: float) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927).

    >>> tuple(round(x, 4) for x in wilson(0, 100))
    (0.0, 0.037)
    """
    if n == 0:
        return 0.0, 1.0
    z2 = 1.96**2
    p = hits / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_difference(hits: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """95% interval of the difference of two shares (Newcombe 1998, method 10)."""
    p, q = hits.mean(), reference.mean()
    (p_low, p_high), (q_low, q_high) = (wilson(int(x.sum()), len(x)) for x in (hits, reference))
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def weighted_share_difference(
    hits: np.ndarray, reference: np.ndarray, weights: Float[np.ndarray, " m"], n: float
) -> tuple[float, float]:
    """As `share_difference`, of a reference in which images weigh differently and tell as much as `n` equal ones."""
    p, q = hits.mean(), (weights * reference).sum() / weights.sum()
    (p_low, p_high), (q_low, q_high) = wilson(int(hits.sum()), len(hits)), wilson(q * n, n)
    return p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)


def somers_d(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"] | None = None
) -> tuple[float, float]:
    """P(x > y) - P(x < y) for a random pair, and its standard error (DeLong et al. 1988, by ranks).

    With `weights` a y is drawn in proportion to its weight (importance sampling, weights taken as known).

    >>> somers_d(np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0]))[0]
    0.8333333333333334
    """
    if weights is not None:
        return _weighted_somers_d(x, y, weights)
    above_x = (np.searchsorted(np.sort(y), x, "left") + np.searchsorted(np.sort(y), x, "right")) / len(y) - 1
    above_y = 1 - (np.searchsorted(np.sort(x), y, "left") + np.searchsorted(np.sort(x), y, "right")) / len(x)
    variance = sum(values.var(ddof=1) / len(values) for values in (above_x, above_y))
    return float(above_x.mean()), math.sqrt(variance)


def _weighted_somers_d(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"]
) -> tuple[float, float]:
    order = np.argsort(y, kind="stable")
    share = weights / weights.sum()
    below = np.concatenate([[0.0], np.cumsum(share[order])])  # of the y before each position
    above_x = below[np.searchsorted(y[order], x, "left")] + below[np.searchsorted(y[order], x, "right")] - 1
    above_y = 1 - (np.searchsorted(np.sort(x), y, "left") + np.searchsorted(np.sort(x), y, "right")) / len(x)
    d = float((share * above_y).sum())
    rest = 1 - np.square(share).sum()  # 1 - 1/n for equal weights
    of_y = (np.square(share) * np.square(above_y - d)).sum() / rest if rest > 0 else math.inf
    return d, math.sqrt(above_x.var(ddof=1) / len(x) + of_y)
