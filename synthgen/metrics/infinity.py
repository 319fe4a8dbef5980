"""FID without its bias in n, extrapolated to infinite sets (Chong and Forsyth 2020, "Effectively unbiased FID and IS")."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from synthgen.errors import ConfigError, DataError
from synthgen.metrics.features import Array, as_pair
from synthgen.metrics.frechet import Moments, frechet_distance_of
from synthgen.metrics.subsets import Subsets
from synthgen.shapes import Float


class FIDInfinity(NamedTuple):
    """The extrapolated distance and the standard error of the line's fit."""

    value: float
    standard_error: float


def fid_infinity(
    real: Float[Array, "n d"],
    synthetic: Float[Array, "m d"],
    num_points: int = 15,
    min_share: float = 0.2,
    seed: int = 0,
    *,
    whole_real: bool = False,
) -> FIDInfinity:
    """FID at 1/n = 0 of the line through the FIDs of random subsets over 1/n (Chong and Forsyth 2020, section 4).

    The subsets hold shares of both sets, evenly spaced from `min_share` to 1, drawn afresh for each point, so that the
    bias of the real side goes too. The value may be a little below 0. The standard error is that of the fit alone: the
    points share rows, so the spread over new data is larger (bootstrap or disjoint splits tell it). Cost: `num_points`
    Fréchet distances, of (1 + min_share) / 2 of the rows in the mean.

    Args:
        real: features of real images.
        synthetic: features of synthetic images.
        num_points: subsets on the line, 3 or more.
        min_share: the smallest subset's share of its set, above 0 and below 1.
        seed: of the draws.
        whole_real: keep the real set whole, as the authors do with their 50,000 reference images; its own bias stays in.

    Raises:
        ConfigError: fewer than 3 points, or a share that leaves no line.
        DataError: a smallest subset of d rows or fewer (FID isn't linear in 1/n there), other widths, or values that
            aren't finite.
    """
    if num_points < 3:
        raise ConfigError(f"fid_infinity: {num_points} points: a line with its standard error needs at least 3")
    if not 0 < min_share < 1:
        raise ConfigError(f"fid_infinity: min_share {min_share}: a share above 0 and below 1 is needed")
    x, y = as_pair(real, synthetic, "fid_infinity", need=2, dtype=None)
    shares = np.linspace(min_share, 1, num_points)
    _enough(x, y, min_share, whole_real)
    of_x, of_y = Subsets(x, "fid infinity, real", seed), Subsets(y, "fid infinity, synthetic", seed)
    whole = Moments.of(x) if whole_real else None
    distances = []
    for index, share in enumerate(shares):
        fewer = Moments.of(of_y.draw(round(share * len(y)), index))
        distances.append(frechet_distance_of(whole or Moments.of(of_x.draw(round(share * len(x)), index)), fewer))
    return _intercept(1 / shares, np.array(distances))


def _enough(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], min_share: float, whole_real: bool) -> None:
    d = x.shape[1]
    for name, rows, share in (("synthetic", y, min_share), ("real", x, 1.0 if whole_real else min_share)):
        smallest = round(share * len(rows))
        if smallest <= d:
            raise DataError(
                f"fid_infinity: {name} features: the smallest subset would hold {smallest} of {len(rows)} rows of {d} "
                f"dimensions, where FID isn't linear in 1/n: {math.ceil((d + 1) / share)} rows are needed, or a larger min_share"
            )


def _intercept(x: np.ndarray, y: np.ndarray) -> FIDInfinity:
    """Ordinary least squares of y over x, at x = 0, with its standard error."""
    spread = np.square(x - x.mean()).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    value = y.mean() - slope * x.mean()
    variance = np.square(y - value - slope * x).sum() / (len(x) - 2)
    return FIDInfinity(float(value), float(np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / spread))))
