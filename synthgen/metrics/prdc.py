"""Precision and recall (Kynkäänniemi et al. 2019, eq. 1-2), density and coverage (Naeem et al. 2020, eq. 5-6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synthgen.metrics.features import Array, as_pair
from synthgen.metrics.neighbours import Points, knn, power_of_two, precise
from synthgen.metrics.products import product
from synthgen.shapes import Bool, Float, Int64


class PRDC(NamedTuple):
    """Shares in [0, 1], except density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


class Membership(NamedTuple):
    """Who lies in whose ball: the figures of `prdc` before they are averaged.

    Attributes:
        balls: of each synthetic image, how many real balls it lies in.
        recalled: of each real image, whether it lies in a synthetic ball.
        covered: of each real image, whether its ball holds a synthetic image.
    """

    balls: Int64[Tensor, " m"]
    recalled: Bool[Tensor, " n"]
    covered: Bool[Tensor, " n"]


def prdc(real: Float[Array, "n d"], synthetic: Float[Array, "m d"], k: int = 5) -> PRDC:
    """How much of the synthetic set lies among the real images, and how much of the real set it covers.

    With B(x) the open ball around x that reaches to its k-th nearest neighbour in its own set:
    precision: share of synthetic images inside any real ball; recall: share of real images inside any synthetic ball;
    density: real balls an average synthetic image lies in, over k; coverage: share of real balls that hold a synthetic
    image. Exact, in O((n + m)^2 d) time and O(n + m) memory beside two centred copies of the features. float64 features
    are compared in float64, float32 ones in float32: see `membership` for ties and rounding.

    Raises:
        DataError: k rows or fewer on a side, other widths, or values that aren't finite.
    """
    balls, recalled, covered = membership(real, synthetic, k)
    return PRDC(_share(balls > 0), _share(recalled), balls.sum().item() / (k * len(balls)), _share(covered))


def membership(real: Float[Array, "n d"], synthetic: Float[Array, "m d"], k: int = 5) -> Membership:
    """Who lies in whose ball, see `prdc`.

    Ties: a distance equal to the radius is outside, except that a ball of radius 0 holds its own centre, so that a set of
    identical images is inside itself. To hold against rounding (a copy of a real image is as far from its neighbours as
    the original) squared distances are taken as larger by what a product may be off, some 12 eps of the squared
    norms: 1.4e-6 in float32. On sets whose distances don't tie that moves no figure by more than about 1e-4. Where it
    isn't small against the radii (clusters far apart for their width, an outlier far from all) all is done in float64.

    Raises:
        DataError: as `prdc`.
    """
    x, y = as_pair(real, synthetic, "precision/recall/density/coverage", need=max(k, 1) + 1, dtype=None)
    unit = power_of_two(x, y)
    if unit != 1:
        x, y = x / unit, y / unit
    radius_x, radius_y = (knn(z, z, k, exclude_self=True)[0][:, -1] for z in (x, y))
    centre = x.mean(dim=0)
    if not (precise(radius_x, x, y, centre) and precise(radius_y, x, y, centre)):
        x, y = x.double(), y.double()
        centre = centre.double()
    points_x, points_y = Points(x, centre), Points(y, centre)
    reach_x, reach_y = _half_square(points_x, radius_x), _half_square(points_y, radius_y)
    slack = 1 + max(12, x.shape[1] ** 0.5 / 4) * torch.finfo(x.dtype).eps
    points_x.rows[:, -2] *= slack
    points_y.rows[:, -2] *= slack
    points_x.rows[:, -2] += reach_x  # so that the product is (r_x^2 - |x - y|^2) / 2

    balls = x.new_zeros(points_y.padded)
    nearest, recall = (x.new_full((points_x.padded,), -torch.inf) for _ in range(2))
    scratch = x.new_empty((points_x.tile, points_y.tile))
    for start in points_y.starts():
        columns, right = slice(start, start + points_y.tile), points_y.right(start)
        for at in points_x.starts():
            rows = slice(at, at + points_x.tile)
            tile = product(points_x.left(at), right)
            nearest[rows] = torch.maximum(nearest[rows], tile.amax(dim=1))
            balls[columns] += torch.gt(tile, 0, out=scratch).sum(dim=0)  # as floats: five times as fast as with booleans
            recall[rows] = torch.maximum(recall[rows], torch.add(tile, reach_y[columns], out=scratch).amax(dim=1))
    counted = balls[: len(y)].long()
    recalled, covered = (recall > reach_x)[: len(x)], (nearest > 0)[: len(x)]
    return _with_points(x, y, radius_x == 0, radius_y == 0, Membership(counted, recalled, covered))


def _half_square(points: Points, radius: Float[Tensor, " n"]) -> Float[Tensor, " p"]:
    reach = points.rows.new_zeros(points.padded)
    reach[: points.n] = radius.square() / 2
    return reach


def _with_points(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], point_x: Bool[Tensor, " n"], point_y: Bool[Tensor, " m"], found: Membership
) -> Membership:
    """Adds the balls of radius 0, each of which holds the rows that equal its centre."""
    balls, recalled, covered = found
    if bool(point_x.any()):
        own, other = _same(x[point_x], y)
        balls = balls + torch.bincount(own, minlength=int(other.max()) + 1)[other]
        covered = covered.clone()
        covered[point_x] |= torch.isin(own, other)
    if bool(point_y.any()):
        own, other = _same(y[point_y], x)
        recalled = recalled | torch.isin(other, own)
    return Membership(balls, recalled, covered)


def _same(a: Float[Tensor, "p d"], b: Float[Tensor, "q d"]) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " q"]]:
    """Numbers for the rows of both, equal for equal rows."""
    numbers = torch.unique(torch.cat([a, b]), dim=0, return_inverse=True)[1]
    return numbers[: len(a)], numbers[len(a) :]


def _share(hits: Bool[Tensor, " n"]) -> float:
    return hits.double().mean().item()
