"""Precision and recall (Kynkäänniemi et al. 2019, eq. 1-2), density and coverage (Naeem et al. 2020, eq. 5-6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthgen.metrics.features import Array, as_pair
from synthgen.metrics.neighbours import CHUNK, knn, squared_distances
from synthgen.shapes import Bool, Float


class PRDC(NamedTuple):
    """Shares in [0, 1], except density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Float[Array, "n d"], synthetic: Float[Array, "m d"], k: int = 5) -> PRDC:
    """How much of the synthetic set lies among the real images, and how much of the real set it covers.

    With B(x) the open ball around x that reaches to its k-th nearest neighbour in its own set:
    precision: share of synthetic images inside any real ball; recall: share of real images inside any synthetic ball;
    density: real balls an average synthetic image lies in, over k; coverage: share of real balls that hold a synthetic
    image. Ties: a distance equal to the radius is outside, except that a ball of radius 0 holds its own centre, so that
    a set of identical images is inside itself. Cost O((n + m)^2 d) time and O((n + m) chunk) memory, float64.

    Raises:
        DataError: k rows or fewer on a side, other widths, or values that aren't finite.
    """
    x, y = as_pair(real, synthetic, "precision/recall/density/coverage", need=k + 1)
    centre = x.mean(dim=0)
    x, y = x - centre, y - centre
    radius_x = knn(x, x, k, exclude_self=True)[0][:, -1]
    radius_y = knn(y, y, k, exclude_self=True)[0][:, -1]
    recalled, covered, balls = 0, 0, torch.zeros(len(y), dtype=torch.int64, device=x.device)
    for rows, radius in zip(x.split(CHUNK), radius_x.split(CHUNK), strict=True):
        distance = squared_distances(rows, y).sqrt_()
        in_real_ball = _inside(distance, radius[:, None])
        balls += in_real_ball.sum(dim=0)
        covered += int(in_real_ball.any(dim=1).sum())
        recalled += int(_inside(distance, radius_y[None, :]).any(dim=1).sum())
    precision = (balls > 0).double().mean().item()
    return PRDC(precision, recalled / len(x), balls.sum().item() / (k * len(y)), covered / len(x))


def _inside(distance: Float[Tensor, "b m"], radius: Float[Tensor, " ..."]) -> Bool[Tensor, "b m"]:
    return (distance < radius) | ((distance == 0) & (radius == 0))
