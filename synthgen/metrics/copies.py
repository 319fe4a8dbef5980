"""Copies of training images and near-duplicates, in pixels and in features, in tiles of O(n chunk) memory.

A copy is nearer to a training image than the nearest of equally many held-out images is expected to be. In plain pixels
a few large smooth regions decide what is near. Whitened, two natural images are almost orthogonal, so that an image
which is mixed with a quarter of another one, or with noise, still points to its source far more than chance would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthgen.errors import DataError
from synthgen.metrics.features import Array, as_features
from synthgen.metrics.neighbours import knn, squared_distances
from synthgen.metrics.products import exact
from synthgen.shapes import Float, Int64, UInt8

NOISE = 0.1
"""Noise that a copy should survive, sd in units of the full range: frequencies in which images vary less count less."""

CHUNK = 512
"""Queries a tile of distances."""

SHORTLIST = 32
"""Fewest images of a base that are compared in every pose. Of 10,000 CIFAR-10 images, the source of a mirrored copy shifted
by 2 px with noise of sd 0.1 was among them in 1,000 of 1,000 cases, with noise of sd 0.2 in 994."""
TAIL = 1e-4
"""Probability of the draws whose nearest image may lie beyond the shortlist."""
COARSE_PX = 8
"""Height and width of the averages that the shortlist is made by, about."""
FINE_PX = 32
"""Images of twice this size and more are averaged down by whole factors, to 32-63 px."""
TILE = 2**24
"""Floats in one tensor of poses, or of shortlisted images."""

FLOOR = 1e-6
"""Energy a pixel that is added to every image's, so that two constant images are equal and not undefined."""
ZERO = 5e-6
"""Cosines that fall short of 1 by less are 1, to rounding."""
FARTHEST = 100.0
"""Largest distance: there is nothing beyond an image without any correlation."""

Images = UInt8[Array, "n c h w"] | Float[Array, "n c h w"]
BaseImages = UInt8[Array, "m c h w"] | Float[Array, "m c h w"]
HeldOutImages = UInt8[Array, "r c h w"] | Float[Array, "r c h w"]


@dataclass(frozen=True)
class CopyMatch:
    """What each image may be a copy of.

    Attributes:
        ratio: `distance` over the distance expected to the nearest of equally many held-out images: about 1 for an image
            that owes nothing to the training images, 0 for an exact copy.
        nearest: row of the training image.
        distance: from it. In pixels the tangent of the angle between the whitened images in their best pose, that is what
            doesn't come from the training image over what does: 0 to `FARTHEST`, 1 where both are equal. In features a
            Mahalanobis distance.
    """

    ratio: Float[Tensor, " n"]
    nearest: Int64[Tensor, " n"]
    distance: Float[Tensor, " n"]


@dataclass(frozen=True)
class Whitening:
    """Filter H(f) = (S(f) + NOISE^2)^(-1/2), S the colour covariance at each frequency: the Wiener-damped whitening.

    The frequencies are those of the cosine transform (DCT-II), that is of the image continued in mirrors: the filter
    is symmetric, so it commutes with mirroring, and with shifts away from the border.

    Attributes:
        mean: of each channel.
        gain: H, symmetric in its channels.
        factor: images are averaged down by this much first.
    """

    mean: Float[Tensor, " c"]
    gain: Float[Tensor, "c c h w"]
    factor: int

    def __call__(self, images: Images) -> Float[Tensor, "n c y x"]:
        """The filtered images, on the filter's device."""
        x = F.avg_pool2d(_unit(torch.as_tensor(images), self.gain.device), self.factor) - self.mean[:, None, None]
        height, width = x.shape[-2:]
        rows, columns = _cosines(height).to(x), _cosines(width).to(x)
        spectrum = (self.gain * (rows @ x @ columns.T)[:, None]).sum(dim=2)
        return rows.T @ spectrum @ columns


def fit_whitening(images: Images, others: BaseImages, device: torch.device | str = "cpu") -> Whitening:
    """The whitening filter of both sets of images together; see `Whitening`."""
    sets: list[Tensor] = [torch.as_tensor(images), torch.as_tensor(others)]
    num, factor = sum(map(len, sets)), max(1, min(sets[0].shape[-2:]) // FINE_PX)
    chunks = [chunk for x in sets for chunk in x.split(CHUNK)]
    mean = torch.stack([_unit(chunk, "cpu").double().mean(dim=(2, 3)).sum(dim=0) for chunk in chunks]).sum(dim=0) / num
    power = torch.zeros(1, dtype=torch.float64)
    for chunk in chunks:
        y = F.avg_pool2d(_unit(chunk, "cpu"), factor) - mean.float()[:, None, None]
        spectrum = (_cosines(y.shape[-2]) @ y @ _cosines(y.shape[-1]).T).permute(2, 3, 1, 0)
        power = power + (spectrum @ spectrum.transpose(-1, -2)).double()
    covariance = _smoothed(power) / num + NOISE**2 * torch.eye(len(mean), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    gain = (vectors * values.clamp(min=NOISE**2)[..., None, :].rsqrt()) @ vectors.transpose(-1, -2)
    return Whitening(mean.float().to(device), gain.permute(2, 3, 0, 1).float().contiguous().to(device), factor)


def copy_ratio(
    images: Images,
    train: BaseImages,
    held_out: HeldOutImages,
    size: int,
    search_px: int,
    flip: bool,
    exclude_self: bool = False,
    device: torch.device | str = "cpu",
) -> CopyMatch:
    """Distance to the nearest training image over that expected to the nearest of `size` held-out images, whitened.

    The distance is the tangent of the angle between two images under `Whitening`, over the pixels where they overlap, in
    the best pose: y = a x + e has tan = |e| / |a x|, so noise raises numerator and denominator alike and cancels, where
    in a ratio of Euclidean distances it hides the copy (with noise of sd 0.1, 10,000 against 10,000 CIFAR-10 images at
    1% false alarms: 0.99 found instead of 0.64). All images are first searched by their coarse averages in a few poses;
    the nearest ones of each set are then compared in every pose. Held-out images go through the same search, so that
    thresholds calibrated on them hold whatever it misses.

    Args:
        images: asked about; uint8, or floats in [0, 1].
        train: what they may be copies of.
        held_out: real images that the generator didn't see.
        size: how many held-out images stand against the training images: as many as these where there are enough.
        search_px: shifts of up to this many pixels in each direction are tried: (2 search_px + 1)^2 of them.
        flip: whether mirrored images are tried too.
        exclude_self: `images` are `held_out`, and each is left out of what it is compared with.
        device: where to compute; the result is on the CPU.

    Raises:
        DataError: no images, other shapes, fewer than `size` held-out images, shifts that leave nothing of the images.

    Cost: 10,000 images against 10,000 and 10,000 in colour at 32 px, shifts of up to 2 px and mirrored: 27 s on one core;
    memory for both bases whitened (float32) and a tile of `CHUNK` times their number. With few training images among
    many held-out ones (50 of 5,000) more of these must be compared in every pose: some 900 instead of 32.
    """
    x, t, r = torch.as_tensor(images), torch.as_tensor(train), torch.as_tensor(held_out)
    _check(x, t, r, size, search_px, exclude_self)
    weights = _draw_weights(len(r) - int(exclude_self), size)
    with exact(torch.device(device)):
        search = _Search(fit_whitening(t, r, device), search_px, flip)
        base = search.index([t, r])
        keep = min(SHORTLIST, len(t)), min(max(SHORTLIST, len(weights)), len(r) - int(exclude_self))
        nearest, rows, expected = [], [], []
        for start in range(0, len(x), CHUNK):
            chunk = x[start : start + CHUNK]
            shortlist = search.shortlist(chunk, base, len(t), keep, start if exclude_self else None)
            near, drawn = search.distances(chunk, base, shortlist).split(keep, dim=1)
            nearest.append(near.min(dim=1).values)
            rows.append(shortlist.gather(1, near.argmin(dim=1, keepdim=True))[:, 0])
            expected.append(drawn.sort(dim=1).values[:, : len(weights)].double() @ weights.to(device))
    distance = torch.cat(nearest).double().cpu()
    return CopyMatch(_ratio(distance, torch.cat(expected).cpu()), torch.cat(rows).cpu(), distance)


def _ratio(nearest: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """nearest / expected; 0 where nearest is 0, whatever is expected."""
    return torch.where(nearest == 0, 0.0, nearest / expected.clamp(min=1e-12))


@dataclass(frozen=True)
class _Index:
    """Images ready to be searched.

    Attributes:
        maps: whitened and flattened.
        energy: of a map where each of a search's moves overlaps it.
        coarse: unit vectors, one a column.
    """

    maps: Tensor
    energy: Tensor
    coarse: Tensor


class _Search:
    """The poses that a copy is looked for in, and the two passes over a base."""

    def __init__(self, whitening: Whitening, search_px: int, flip: bool) -> None:
        self.whitening = whitening
        self.pool = max(1, round(min(whitening.gain.shape[2:]) / COARSE_PX))
        self.fine = _grid(search_px, 1)
        self.coarse = _grid(search_px, max(1, self.pool * whitening.factor // 2))
        self.mirrors = (False, True) if flip else (False,)
        self.moves = sorted({(y // whitening.factor, x // whitening.factor) for y, x in self.fine})

    def index(self, bases: list[Tensor]) -> _Index:
        """All images of the bases, one after the other."""
        maps, energy, coarse = [], [], []
        for chunk in (chunk for base in bases for chunk in base.split(CHUNK)):
            x = self.whitening(chunk)
            square = x.square().sum(dim=1)
            energy.append(torch.stack([_overlap(square, *move).sum(dim=(1, 2)) for move in self.moves], dim=1))
            coarse.append(self._coarse(x))
            maps.append(x.flatten(1))
        return _Index(torch.cat(maps), torch.cat(energy), torch.cat(coarse).T.contiguous())

    def shortlist(self, images: Tensor, base: _Index, first: int, keep: tuple[int, int], left_out: int | None) -> Tensor:
        """Rows of the images that correlate most, coarsely: keep[0] of the `first` ones, then keep[1] of the others.

        Of the others, image i leaves out number `left_out` + i.
        """
        best = base.coarse.new_full((len(images), len(base.maps)), -torch.inf)
        for _, x in self._poses(images, self.coarse):
            torch.maximum(best, self._coarse(x) @ base.coarse, out=best)
        if left_out is not None:
            best.diagonal(offset=first + left_out).fill_(-torch.inf)
        rows = best[:, :first].topk(keep[0], dim=1).indices, best[:, first:].topk(keep[1], dim=1).indices + first
        return torch.cat(rows, dim=1)

    def distances(self, images: Tensor, base: _Index, rows: Tensor) -> Tensor:
        """Distance of each image to its `rows` of the base, the least over all poses."""
        num_poses, pixels = len(self.mirrors) * len(self.fine), base.maps.shape[1]
        step = max(1, TILE // (max(num_poses, rows.shape[1]) * pixels))
        floor, tiles = FLOOR * pixels, []
        for part, chosen in zip(images.split(step), rows.split(step), strict=True):
            moves, poses = zip(*self._poses(part, self.fine), strict=True)
            x, y = torch.stack(poses, dim=1).flatten(2), base.maps[chosen]
            own = torch.linalg.vector_norm(x, dim=2).square()[:, :, None] + floor
            other = base.energy[chosen][:, :, list(moves)].transpose(1, 2) + floor
            cosine = torch.bmm(x, y.transpose(1, 2)).add_(floor).div_((own * other).sqrt_()).amax(dim=1)
            tiles.append(_tangent(cosine))
        return torch.cat(tiles)

    def _coarse(self, x: Tensor) -> Tensor:
        return F.normalize(F.avg_pool2d(x, self.pool, ceil_mode=True).flatten(1), dim=1)

    def _poses(self, images: Tensor, shifts: list[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        """(number of the move, whitened images moved so, zeros moving in) for each shift, then for the mirrored images.

        A shift of y pixels is y // factor pixels of the averaged image, after one of y % factor before it is averaged.
        """
        factor = self.whitening.factor
        for mirror in self.mirrors:
            phases: dict[tuple[int, int], Tensor] = {}
            for y, x in shifts:
                phase, move = (y % factor, x % factor), (y // factor, x // factor)
                if phase not in phases:
                    phases[phase] = self.whitening(_shifted(images.flip(-1) if mirror else images, *phase))
                yield self.moves.index(move), _moved(phases[phase], *move)


def feature_copy_ratio(
    features: Float[Array, "n d"],
    train: Float[Array, "m d"],
    held_out: Float[Array, "r d"],
    size: int,
    exclude_self: bool = False,
) -> CopyMatch:
    """`copy_ratio` in the features of any extractor; nothing is shifted or mirrored.

    Distances are Mahalanobis, in the covariance of training and held-out features (of both, or one side would look farther
    than the other where there are more features than images), shrunk to its mean variance by d / (d + number of images):
    on digits (50 train, 300 held-out, a CNN of 48 features, 1% false alarms) that finds 0.94 of copies with noise of
    sd 0.05, where Euclidean ones find 0.77.

    Args:
        features: of the images asked about; all three by one extractor.
        train: of the training images.
        held_out: of real images that the generator didn't see.
        size: how many held-out images stand against the training images.
        exclude_self: `features` are `held_out`, and each is left out of what it is compared with.

    Raises:
        DataError: other widths, values that aren't finite, fewer than `size` held-out images.
    """
    x, t, r = (
        as_features(given, f"copies: {name}", need=1).to(torch.as_tensor(features).device)
        for given, name in ((features, "features"), (train, "train features"), (held_out, "held-out features"))
    )
    if not x.shape[1] == t.shape[1] == r.shape[1]:
        raise DataError(f"copies: features of {x.shape[1]}, {t.shape[1]} and {r.shape[1]} dimensions: one extractor for all")
    _check_size(len(r), size, exclude_self, len(x))
    weights = _draw_weights(len(r) - int(exclude_self), size)
    real, width = torch.cat([t, r]), x.shape[1]
    share, covariance = width / (width + len(real)), torch.cov(real.T, correction=0).reshape(width, width)
    shrunk = (1 - share) * covariance + share * covariance.trace() / width * torch.eye(
        width, dtype=torch.float64, device=x.device
    )
    values, vectors = torch.linalg.eigh(shrunk)
    whitening = vectors * values.clamp(min=1e-12 * float(values.max()) + 1e-300).rsqrt()
    x, t, r = x @ whitening, t @ whitening, r @ whitening
    distance, row = knn(x, t, 1)
    expected = knn(x, r, len(weights), exclude_self)[0] @ weights.to(x.device)
    return CopyMatch(*(found.cpu() for found in (_ratio(distance[:, 0], expected), row[:, 0], distance[:, 0])))


def expected_nearest(distances: Float[Tensor, "b m"], size: int) -> Float[Tensor, " b"]:
    """Expected distance to the nearest of `size` images drawn at random, without replacement, from the m given ones.

    The i-th nearest of m is the nearest of the draw with probability C(m - i, size - 1) / C(m, size).
    """
    weights = _draw_weights(distances.shape[1], size, tail=0.0)
    nearest = distances.topk(len(weights), dim=1, largest=False).values
    return nearest.double() @ weights.to(distances.device)


def _draw_weights(m: int, size: int, tail: float = TAIL) -> Float[Tensor, " k"]:
    """Probability that the i-th nearest of m is the nearest of a draw of `size`, i = 1, 2, ...; what is left at the end.

    It ends where no more than `tail` is left: the last of the weights takes that too.
    """
    if not 1 <= size <= m:
        raise DataError(f"{size} of {m} images can't be drawn")
    weights, left = [size / m], 1 - size / m
    while left > tail and len(weights) < m - size + 1:
        i = len(weights)  # C(m - i - 1, s - 1) / C(m - i, s - 1) = (m - i - s + 1) / (m - i)
        weights.append(weights[-1] * (m - i - size + 1) / (m - i))
        left -= weights[-1]
    weights[-1] += max(left, 0.0)
    return torch.tensor(weights, dtype=torch.float64)


# Duplicates inside a set


def nearest_other(images: Images) -> Float[Tensor, " n"]:
    """Distance to the nearest other image of the set, blurred and without shifts; infinite in a set of one."""
    nearest = []
    for start, tile in _blurred_tiles(images, images):
        tile.diagonal(offset=start).fill_(torch.inf)
        nearest.append(tile.amin(dim=1).double())
    return torch.cat(nearest)


def expected_distance(images: Images, base: BaseImages, size: int) -> Float[Tensor, " n"]:
    """Distance expected to the nearest of `size` images of `base`, blurred and without shifts: the unit of `nearest_other`."""
    return torch.cat([expected_nearest(tile, size) for _, tile in _blurred_tiles(images, base)])


def duplicate_groups(images: Images, reach: Float[Array, " n"], order: Int64[Array, " n"] | None = None) -> Int64[Tensor, " n"]:
    """For each image the row of the image that stands for it: its own row, unless an earlier one is a near-duplicate.

    Images are taken in `order`; one that is nearer than its `reach` to an image already standing joins the nearest of
    these. So groups are balls around their first image, and a chain of look-alikes doesn't swallow a dense class whole.

    Args:
        images: one set, "n c h w"; blurred distances without shifts are compared.
        reach: largest distance that makes image i a duplicate; equal images are duplicates whatever it is.
        order: rows, best first; as they stand if not given.
    """
    x = _pixels(images)
    x = x - x.mean()
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


def blur(images: Images) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] under the binomial filter (1 2 1)/4 in both directions, edges repeated.

    uint8 images are divided by 255, floats are taken to be in [0, 1].
    """
    x = _unit(torch.as_tensor(images), None)
    x = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    x = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def _blurred_tiles(images: Images, base: BaseImages) -> Iterator[tuple[int, Float[Tensor, "b m"]]]:
    """(first row, root mean square distances to all of base), in units of the full range, a chunk of images at a time."""
    _check_shapes(images, base)
    x, y = _pixels(images), _pixels(base)
    middle = y.mean()
    y = y - middle
    for start in range(0, len(x), CHUNK):
        yield start, _rms(x[start : start + CHUNK] - middle, y)


def _pixels(images: Images) -> Float[Tensor, "n d"]:
    """Blurred, averaged down to 16-31 px, flattened."""
    x = blur(images)
    return F.avg_pool2d(x, max(1, min(x.shape[-2:]) // 16)).flatten(1)


def _rms(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return squared_distances(x, y).div_(x.shape[1]).sqrt_()


# Steps of the search


def _unit(images: Tensor, device: torch.device | str | None) -> Tensor:
    x = images.to(device) if device is not None else images
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


@lru_cache(maxsize=16)
def _cosines(n: int) -> Tensor:
    """The orthonormal cosine transform, DCT-II, as a matrix; rows are frequencies."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = (math.pi * (i + 0.5) * k / n).cos() * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix.float()


def _smoothed(power: Tensor) -> Tensor:
    """Means over neighbouring frequencies, weighted (1 2 1)/4 in both directions.

    A smooth filter reaches less far, so the border spoils less: on digits, 1.00 instead of 0.96 of copies shifted by 1 px.
    """
    height, width = power.shape[:2]
    for axis, n in ((0, height), (1, width)):
        before, after = torch.arange(-1, n - 1).clamp(min=0), torch.arange(1, n + 1).clamp(max=n - 1)
        power = (power.index_select(axis, before) + 2 * power + power.index_select(axis, after)) / 4
    return power


def _tangent(cosine: Tensor) -> Tensor:
    """tan of the angle: 0 to rounding is exactly 0, and beyond 89 degrees all are as far."""
    tangent = (1 - cosine.square()).clamp_(min=0).sqrt_() / cosine.clamp(min=1 / FARTHEST)
    return tangent.masked_fill_(cosine > 1 - ZERO, 0)


def _grid(reach: int, stride: int) -> list[tuple[int, int]]:
    """Shifts (y, x) from -reach to reach, at most `stride` apart."""
    line = sorted({round(float(shift)) for shift in np.linspace(-reach, reach, math.ceil(2 * reach / stride) + 1)})
    return [(y, x) for y in line for x in line]


def _shifted(images: Tensor, y: int, x: int) -> Tensor:
    """The images moved up by y and left by x pixels; their last row and column are repeated."""
    if not (y or x):
        return images
    height, width = images.shape[-2:]
    rows, columns = torch.arange(y, height + y).clamp(max=height - 1), torch.arange(x, width + x).clamp(max=width - 1)
    return images[..., rows, :][..., columns]


def _moved(x: Tensor, dy: int, dx: int) -> Tensor:
    """The images moved up by dy and left by dx pixels; zeros move in."""
    return F.pad(x, (-dx, dx, -dy, dy)) if dy or dx else x


def _overlap(x: Tensor, dy: int, dx: int) -> Tensor:
    """The pixels of an unmoved image on which one moved up by dy and left by dx lies."""
    height, width = x.shape[-2:]
    return x[..., max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)]


def _check(images: Tensor, train: Tensor, held_out: Tensor, size: int, search_px: int, exclude_self: bool) -> None:
    _check_shapes(images, train)
    _check_shapes(images, held_out)
    for name, given in (("images", images), ("training images", train)):
        if not len(given):
            raise DataError(f"copies: there are no {name}")
    height, width = images.shape[2:]
    if search_px >= min(height, width):
        raise DataError(f"shifts of {search_px} px leave nothing of images of {height}x{width} px")
    _check_size(len(held_out), size, exclude_self, len(images))


def _check_shapes(images: Images, others: BaseImages) -> None:
    shape, other = tuple(images.shape[1:]), tuple(others.shape[1:])
    if shape != other:
        raise DataError(f"images of shape {shape} can't be compared with images of shape {other}")


def _check_size(num_held_out: int, size: int, exclude_self: bool, num: int) -> None:
    if exclude_self and num != num_held_out:
        raise DataError(f"copies: {num} images and {num_held_out} held-out ones can't be the same; exclude_self needs them to be")
    if not 1 <= size <= num_held_out - int(exclude_self):
        other = "other " if exclude_self else ""
        raise DataError(f"copies: {size} of {num_held_out - int(exclude_self)} {other}held-out images can't be drawn")
