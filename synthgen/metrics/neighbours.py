"""Exact nearest neighbours through matrix products, in tiles: O(n k) memory beside the features, on any device.

With rows [x, -|x|^2/2, 1] and [y, 1, -|y|^2/2] one product gives x.y - |x|^2/2 - |y|^2/2 = -|x - y|^2/2: "nearest" is
"largest", and no pass over a tile is spent on norms. A tile of distances within one set serves both of its sides. Of a
row the largest of every 32 entries is taken first; only groups that hold something better than the row's worst neighbour
so far are looked into: after the first tile these are few. What was chosen is measured again, directly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthgen.errors import ConfigError, DataError
from synthgen.metrics.features import Array
from synthgen.metrics.products import product
from synthgen.shapes import Float, Int64

TILE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of a tile; 4 MiB in float32 on a CPU, so that what follows the product finds it in the cache."""

GROUP = 32
TOLERANCE = 1e-3
"""Largest error of a squared distance, as a share of it, at which float32 products are trusted."""

SPARE = 2
"""Neighbours kept beyond k, so that a product's rounding can't push out the k-th before it is measured again."""


class Points:
    """A set about a centre, padded to whole tiles of unreachable points, as both sides of the product.

    Args:
        rows: float32 or float64; the products are in the same.
        centre: subtracted first, which keeps the products accurate.
        room: rows and columns that a tile has at least.
    """

    def __init__(self, rows: Float[Tensor, "n d"], centre: Float[Tensor, " d"], room: int = 1) -> None:
        self.n, d = rows.shape
        self.tile = _up(max(room, min(TILE.get(rows.device.type, 1024), self.n)), GROUP)
        self.padded = _up(self.n, self.tile)
        self.rows = rows.new_zeros((self.padded, d + 2))
        torch.sub(rows, centre, out=self.rows[: self.n, :d])
        self.rows[:, d + 1] = 1
        self.rows[self.n :, d] = -torch.finfo(rows.dtype).max / 4
        for block in self.rows[: self.n].split(self.tile):
            block[:, d] = -torch.linalg.vecdot(block[:, :d], block[:, :d]) / 2

    def starts(self) -> range:
        return range(0, self.padded, self.tile)

    def left(self, start: int) -> Float[Tensor, "t e"]:
        """[x, -|x|^2/2, 1] of the rows from `start`."""
        return self.rows[start : start + self.tile]

    def right(self, start: int) -> Float[Tensor, "t e"]:
        """[y, 1, -|y|^2/2] of the rows from `start`: the last two columns change places."""
        block = self.left(start)
        return torch.cat([block[:, :-2], block[:, -1:], block[:, -2:-1]], dim=1)


class Nearest:
    """The k largest products of each row so far, and with whom."""

    def __init__(self, n: int, k: int, like: Tensor) -> None:
        self.values = like.new_full((n, k), -torch.inf)
        self.rows = torch.zeros((n, k), dtype=torch.int64, device=like.device)

    def offer(self, tile: Float[Tensor, "b c"], at: int, offset: int) -> None:
        """Takes in a tile whose rows are `at`.. of this set, and whose columns are `offset`.. of the others."""
        b, c = tile.shape
        worst = self.values[at : at + b, -1]
        if bool(torch.isinf(worst[0])):  # nothing yet
            best = tile.topk(self.values.shape[1], dim=1)
            self.values[at : at + b], self.rows[at : at + b] = best.values, best.indices + offset
            return
        groups = tile.view(b, GROUP, c // GROUP)
        row, group = (groups.amax(dim=1) > worst[:, None]).nonzero(as_tuple=True)
        self._insert(groups[row, :, group], worst[row], at + row, offset + group, c // GROUP)

    def offer_columns(self, tile: Float[Tensor, "b c"], at: int, offset: int) -> None:
        """The same of the tile's other side: its columns are `at`.. of this set, its rows `offset`.. of the others."""
        b, c = tile.shape
        worst = self.values[at : at + c, -1]
        groups = tile.view(GROUP, b // GROUP, c)
        column, group = (groups.amax(dim=0) > worst).T.nonzero(as_tuple=True)
        self._insert(groups[:, group, column].T, worst[column], at + column, offset + group, b // GROUP)

    def _insert(self, groups: Tensor, worst: Tensor, owners: Tensor, first: Tensor, stride: int) -> None:
        """Merges what beats the worst of its owner: member j of a group is row `first` + j stride of the others."""
        which, member = (groups > worst[:, None]).nonzero(as_tuple=True)
        if not len(which):
            return
        active, inverse, counts = torch.unique_consecutive(owners[which], return_inverse=True, return_counts=True)
        place = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[inverse]
        k = self.values.shape[1]
        values = self.values.new_full((len(active), k + int(counts.max())), -torch.inf)
        rows = self.rows.new_zeros(values.shape)
        values[:, :k], rows[:, :k] = self.values[active], self.rows[active]
        values[inverse, k + place], rows[inverse, k + place] = groups[which, member], first[which] + member * stride
        best = values.topk(k, dim=1)
        self.values[active], self.rows[active] = best.values, rows.gather(1, best.indices)


def knn(
    queries: Float[Array, "n d"], base: Float[Array, "m d"], k: int, exclude_self: bool = False
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Distances to and rows of the k nearest of `base`, nearest first; the distances in float64.

    The search is done in the inputs' precision: with float32 a neighbour may give way to one that is farther by some
    1e-6 of the features' norm (in float64 again where that isn't small against the distances). The distances are those
    between the rows themselves, so a copy is at exactly 0.

    Args:
        queries: the points asked about, float32 or float64.
        base: the points searched.
        k: how many.
        exclude_self: queries and base are one set, and row i isn't its own neighbour (an equal other row is).

    Raises:
        DataError: `base` has fewer than k rows (k + 1 with `exclude_self`).
    """
    x, y = torch.as_tensor(queries), torch.as_tensor(base)
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(x.device, dtype)
    others = len(y) - int(exclude_self)
    if k < 1:
        raise ConfigError(f"{k} nearest neighbours: give 1 or more")
    if others < k:
        raise DataError(f"{k} nearest neighbours of {len(y)} points: at least {k + int(exclude_self)} are needed")
    if not len(x):
        return x.new_zeros((0, k), dtype=torch.float64), torch.zeros((0, k), dtype=torch.int64, device=x.device)
    wanted = min(k + SPARE, others)
    unit = power_of_two(x, y)
    if unit != 1:
        x, y = x / unit, y / unit
    distances, rows, trusted = _nearest(x, y, wanted, k, exclude_self)
    if not trusted:
        distances, rows, _ = _nearest(x.double(), y.double(), wanted, k, exclude_self)
    return distances[:, :k] * unit, rows[:, :k]


def _nearest(x: Tensor, y: Tensor, wanted: int, k: int, exclude_self: bool) -> tuple[Tensor, Tensor, bool]:
    """Distances, rows, and whether the products were precise enough to tell the k-th neighbour from the next."""
    centre = y.mean(dim=0)
    found = _within(Points(y, centre, wanted + 1), wanted) if exclude_self else _between(x, y, centre, wanted)
    distances, rows = measured(x, y, found)
    return distances, rows, precise(distances[:, k - 1], x, y, centre)


def precise(reach: Float[Tensor, " n"], x: Tensor, y: Tensor, centre: Float[Tensor, " d"]) -> bool:
    """Whether a product's rounding is small against these distances: some 12 eps of the squared norms against 1e-3 of them.

    It isn't where clusters lie far apart for their width, or an outlier far from all. float64 is taken as it is.
    """
    if x.dtype == torch.float64:
        return True
    norms = max(float(torch.linalg.vector_norm(z - centre, dim=1).max()) for z in (x, y))
    low = float(reach.quantile(0.05)) if len(reach) < 2**24 else float(reach[: 2**24].quantile(0.05))
    return low == 0 or 12 * torch.finfo(x.dtype).eps * norms**2 <= TOLERANCE * low**2


def power_of_two(x: Tensor, y: Tensor) -> float:
    """What both are divided by, exactly, so that squares neither overflow nor vanish: 1 for values of usual size."""
    largest = max(float(z.abs().max()) for z in (x, y))
    exponent = math.frexp(largest)[1]
    return 1.0 if largest == 0 or abs(exponent) <= 30 else math.ldexp(1.0, max(exponent, -120))


def _within(points: Points, k: int) -> Int64[Tensor, "n k"]:
    """The k nearest others of each point; a tile is computed once and used for both of its sides."""
    nearest = Nearest(points.padded, k, points.rows)
    for start in points.starts():
        right = points.right(start)
        for other in range(start, points.padded, points.tile):
            tile = product(points.left(other), right)
            if other == start:
                tile.fill_diagonal_(-torch.inf)
            nearest.offer(tile, other, start)
            if other > start:
                nearest.offer_columns(tile, start, other)
    return nearest.rows[: points.n]


def _between(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], centre: Float[Tensor, " d"], k: int) -> Int64[Tensor, "n k"]:
    """The k nearest of y to each of x."""
    queries, base = Points(x, centre), Points(y, centre, k)
    nearest = Nearest(queries.padded, k, x)
    for start in base.starts():
        right = base.right(start)
        for at in queries.starts():
            nearest.offer(product(queries.left(at), right), at, start)
    return nearest.rows[: len(x)]


def measured(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], rows: Int64[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Distances |x[i] - y[rows[i, j]]|, summed in float64 whatever a product would lose, and `rows`: nearest first."""
    step = max(1, 2**18 // (rows.shape[1] * x.shape[1]))
    parts = []
    for own, others in zip(x.split(step), rows.split(step), strict=True):
        difference = y.index_select(0, others.reshape(-1)).view(*others.shape, -1).sub_(own[:, None])
        parts.append(torch.linalg.vector_norm(difference, dim=2, dtype=torch.float64))
    distances, order = torch.cat(parts).sort(dim=1, stable=True)
    return distances, rows.gather(1, order)


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x - y|^2 through one matrix product; centre both first. What is zero to rounding is given as exactly 0."""
    xx, yy = x.square().sum(dim=1), y.square().sum(dim=1)
    tile = torch.addmm(yy[None, :], x, y.T, alpha=-2).add_(xx[:, None])
    zero = 32 * torch.finfo(x.dtype).eps * (xx.max() + yy.max())
    return tile.masked_fill_(tile < zero, 0)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
