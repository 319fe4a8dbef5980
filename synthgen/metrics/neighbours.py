"""Nearest neighbours in features (support) and in pixels (copies, duplicates), in tiles of O(n chunk) memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from synthgen.errors import DataError
from synthgen.metrics.features import Array
from synthgen.shapes import Float, Int64, UInt8

CHUNK = 512

Images = UInt8[Array, "n c h w"] | Float[Array, "n c h w"]
BaseImages = UInt8[Array, "m c h w"] | Float[Array, "m c h w"]


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x - y|^2 through one matrix product; centre both first. What is zero to rounding is given as exactly 0."""
    xx, yy = x.square().sum(dim=1), y.square().sum(dim=1)
    tile = torch.addmm(yy[None, :], x, y.T, alpha=-2).add_(xx[:, None])
    zero = 32 * torch.finfo(x.dtype).eps * (xx.max() + yy.max())
    return tile.masked_fill_(tile < zero, 0)


def knn(
    queries: Float[Array, "n d"], base: Float[Array, "m d"], k: int, exclude_self: bool = False
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Distances to and rows of the k nearest of `base`, nearest first, in float64.

    Args:
        queries: the points asked about.
        base: the points searched.
        k: how many.
        exclude_self: queries and base are one set, and row i isn't its own neighbour (an equal other row is).

    Raises:
        DataError: `base` has fewer than k rows (k + 1 with `exclude_self`).
    """
    x, y = torch.as_tensor(queries).double(), torch.as_tensor(base).double()
    need = k + int(exclude_self)
    if len(y) < need:
        raise DataError(f"{k} nearest neighbours of {len(y)} points: at least {need} are needed")
    centre = y.mean(dim=0)
    x, y = x - centre, y - centre
    distances, rows = [], []
    for start in range(0, len(x), CHUNK):
        tile = squared_distances(x[start : start + CHUNK], y)
        if exclude_self:
            tile.diagonal(offset=start).fill_(torch.inf)
        nearest = tile.topk(k, dim=1, largest=False)
        distances.append(nearest.values.sqrt_())
        rows.append(nearest.indices)
    if not distances:
        return x.new_zeros((0, k)), torch.zeros((0, k), dtype=torch.int64)
    return torch.cat(distances), torch.cat(rows)


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
