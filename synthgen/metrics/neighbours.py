"""Exact nearest neighbours through matrix products, in tiles: O(n k) memory beside the features, on any device.

With rows [x, -|x|^2/2, 1] and [y, 1, -|y|^2/2] one product gives x.y - |x|^2/2 - |y|^2/2 = -|x - y|^2/2: "nearest" is
"largest", and no pass over a tile is spent on norms. A tile of distances within one set serves both of its sides. Of a
row the largest of every 32 entries is taken first; only groups that hold something better than the row's worst neighbour
so far are looked into: after the first tile these are few. What was chosen is measured again, directly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from synthgen.errors import DataError
from synthgen.metrics.features import Array
from synthgen.shapes import Float, Int64, UInt8

TILE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of a tile; 4 MiB in float32 on a CPU, so that what follows the product finds it in the cache."""

GROUP = 32
CHUNK = 512

Images = UInt8[Array, "n c h w"] | Float[Array, "n c h w"]
BaseImages = UInt8[Array, "m c h w"] | Float[Array, "m c h w"]

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

    def right(self, start: int) -> Float[Tensor, "e t"]:
        """[y, 1, -|y|^2/2], transposed: the last two columns change places."""
        block = self.left(start)
        return torch.cat([block[:, :-2], block[:, -1:], block[:, -2:-1]], dim=1).T


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
    1e-6 of the features' norm. The distances are those between the rows themselves, so a copy is at exactly 0.

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
    if others < k:
        raise DataError(f"{k} nearest neighbours of {len(y)} points: at least {k + int(exclude_self)} are needed")
    if not len(x):
        return x.new_zeros((0, k), dtype=torch.float64), torch.zeros((0, k), dtype=torch.int64, device=x.device)
    wanted = min(k + SPARE, others)
    centre = y.mean(dim=0)
    found = _within(Points(y, centre, wanted + 1), wanted) if exclude_self else _between(x, y, centre, wanted)
    distances, rows = measured(x, y, found)
    return distances[:, :k], rows[:, :k]


def _within(points: Points, k: int) -> Int64[Tensor, "n k"]:
    """The k nearest others of each point; a tile is computed once and used for both of its sides."""
    nearest = Nearest(points.padded, k, points.rows)
    for start in points.starts():
        right = points.right(start)
        for other in range(start, points.padded, points.tile):
            tile = points.left(other) @ right
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
            nearest.offer(queries.left(at) @ right, at, start)
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


def blur(images: Images) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] under the binomial filter (1 2 1)/4 in both directions, edges repeated.

    uint8 images are divided by 255, floats are taken to be in [0, 1].
    """
    x = torch.as_tensor(images)
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    x = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    x = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def shifted_distances(
    queries: Images, base: BaseImages, search_px: int, flip: bool
) -> Iterator[tuple[slice, Float[Tensor, "b m"]]]:
    """Tiles of distances between blurred images, the least over shifts and the mirror image of the query.

    The distance is the root mean square over the pixels where both overlap, in units of the full range [0, 1]. Images
    of 32 px and more are averaged down to 16-31 px after the shift, which keeps 10,000 against 10,000 in colour affordable.

    Args:
        queries: images asked about, "n c h w".
        base: images searched, "m c h w".
        search_px: shifts of up to this many pixels in each direction are tried: (2 search_px + 1)^2 of them.
        flip: whether mirrored queries are tried too.

    Yields:
        (rows of queries, distances to all of base).
    """
    x, y = blur(queries), blur(base)
    if x.shape[1:] != y.shape[1:]:
        raise DataError(f"images of shape {tuple(x.shape[1:])} can't be compared with images of shape {tuple(y.shape[1:])}")
    middle = y.mean()
    x, y = x - middle, y - middle
    shifts = [(dy, dx) for dy in range(-search_px, search_px + 1) for dx in range(-search_px, search_px + 1)]
    targets = [_overlap(y, -dy, -dx) for dy, dx in shifts]
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        best = x.new_full((rows.stop - start, len(y)), torch.inf)
        for pose in (x[rows], x[rows].flip(-1)) if flip else (x[rows],):
            for (dy, dx), target in zip(shifts, targets, strict=True):
                crop = _overlap(pose, dy, dx)
                best = torch.minimum(best, squared_distances(crop, target).div_(crop.shape[1]))
        yield rows, best.sqrt_()


def nearest_shifted(
    queries: Images, train: BaseImages, search_px: int, flip: bool
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Distance to and row of the training image that each query may be a copy of, under `shifted_distances`.

    A copy that was shifted, mirrored or given some noise is still near: blur takes the noise, the search the rest
    (without a search, the published rule of a distance ratio below 1/3 finds 0-6% of copies shifted by one pixel).
    """
    nearest = [tile.min(dim=1) for _, tile in shifted_distances(queries, train, search_px, flip)]
    return torch.cat([near.values for near in nearest]), torch.cat([near.indices for near in nearest])


def expected_nearest(distances: Float[Tensor, "b m"], size: int) -> Float[Tensor, " b"]:
    """Expected distance to the nearest of `size` images drawn at random, without replacement, from the m given ones.

    Exact: the i-th nearest of m is the nearest of the draw with probability C(m - i, size - 1) / C(m, size).
    """
    m = distances.shape[1]
    if not 1 <= size <= m:
        raise DataError(f"{size} of {m} images can't be drawn")
    weights = torch.zeros(m - size + 1, dtype=torch.float64)
    weights[0] = size / m
    for i in range(1, len(weights)):  # C(m - i - 1, s - 1) / C(m - i, s - 1) = (m - i - s + 1) / (m - i)
        weights[i] = weights[i - 1] * (m - i - size + 1) / (m - i)
    nearest = distances.topk(len(weights), dim=1, largest=False).values
    return nearest.double() @ weights.to(distances.device)


def duplicate_groups(images: Images, reach: Float[Array, " n"], order: Int64[Array, " n"] | None = None) -> Int64[Tensor, " n"]:
    """For each image the row of the image that stands for it: its own row, unless an earlier one is a near-duplicate.

    Images are taken in `order`; one that is nearer than its `reach` to an image already standing joins the nearest of
    these. So groups are balls around their first image, and a chain of look-alikes doesn't swallow a dense class whole.

    Args:
        images: one set, "n c h w"; blurred distances without shifts are compared.
        reach: largest distance that makes image i a duplicate; equal images are duplicates whatever it is.
        order: rows, best first; as they stand if not given.
    """
    x = blur(images)
    x = _overlap(x - x.mean(), 0, 0)
    limit = torch.as_tensor(reach).to(x)
    ranked = torch.arange(len(x)) if order is None else torch.as_tensor(order)
    leaders = torch.arange(len(x))
    standing: list[int] = []
    for rows in ranked.split(CHUNK):
        near = _rms(x[rows], x[standing]) if standing else x.new_empty((len(rows), 0))
        inside = _rms(x[rows], x[rows])
        new: list[int] = []  # positions within this chunk that stand
        for i, row in enumerate(rows.tolist()):
            distance = torch.cat([near[i], inside[i, new]])
            if len(distance):
                least, at = distance.min(dim=0)
                if bool((least < limit[row]) | (least == 0)):
                    leaders[row] = standing[int(at)] if at < near.shape[1] else int(rows[new[int(at) - near.shape[1]]])
                    continue
            new.append(i)
        standing.extend(rows[new].tolist())
    return leaders


def _rms(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return squared_distances(x, y).div_(x.shape[1]).sqrt_()


def _overlap(x: Float[Tensor, "n c h w"], dy: int, dx: int) -> Float[Tensor, "n d"]:
    """The pixels that a copy shifted by (-dy, -dx) shares with its original, averaged down to about 16 px, flattened."""
    height, width = x.shape[-2:]
    if max(abs(dy), abs(dx)) >= min(height, width):
        raise DataError(f"shifts of {max(abs(dy), abs(dx))} px leave nothing of images of {height}x{width} px")
    crop = x[..., max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    factor = max(1, min(height, width) // 16)
    return (F.avg_pool2d(crop, factor) if factor > 1 else crop).flatten(1)
