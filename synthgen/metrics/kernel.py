"""Squared MMD between feature sets: KID (Bińkowski et al. 2018) and the Gaussian kernel (CMMD, Jayasumana et al. 2024).

All of them are sums of a kernel over pairs, taken in tiles: O(n chunk) memory, never n x n. The tiles are of the
features' own precision, whatever is summed up is float64. Terms that a float32 tile would drown are kept out of it:
the affine part of the polynomial kernel is summed in closed form, and of the Gaussian kernel only k - 1 is summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthgen.errors import ConfigError, DataError
from synthgen.metrics.features import Array, as_pair
from synthgen.metrics.neighbours import power_of_two
from synthgen.metrics.products import product
from synthgen.metrics.subsets import Subsets
from synthgen.shapes import Float

CHUNK = 1024
"""Rows and columns of a tile: 4 MiB in float32, which stays in a CPU's cache between the product and its sum."""

ON_CUDA = 8
"""How many times as many on a GPU, which small products leave idle."""

MEDIAN_ROWS = 1000
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (gamma x.y + coef)^degree; a `gamma` of None is 1 / d."""

    degree: int = 3
    gamma: float | None = None
    coef: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ConfigError(f"kid: degree {self.degree}: a whole number of 1 or more is needed")
        if self.gamma is not None and not 0 < self.gamma < math.inf:
            raise ConfigError(f"kid: gamma {self.gamma}: a number above 0 is needed, or None for 1 / d")
        if not 0 <= self.coef < math.inf:
            raise ConfigError(f"kid: coef {self.coef}: a number of 0 or more is needed")


def kid(
    real: Float[Array, "n d"],
    synthetic: Float[Array, "m d"],
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> float:
    """Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3: the full U-statistic (Bińkowski et al. 2018, section 4).

    Each pair of different rows counts once, so nothing is left to the draw of subsets (`kid_subsets`). It is 0 in the
    mean where both sets come from one distribution, so single values may be negative. It isn't scaled: papers often
    print it times 1,000.

    Cost: O((n + m)^2 d) time in tiles and O(n chunk) memory; for the cubic kernel with d^2 < n + m the third moments in
    its place, O((n + m) d^3 / 3) time and O((n + m) d) memory. Float32 features are multiplied in float32 and agree
    with float64 to 5e-7 of the value, or 1e-5 where both sets are of one distribution and the value is what cancelling
    sums leave; float64 features stay float64.

    Args:
        real: features of real images.
        synthetic: features of synthetic images.
        degree: of the polynomial, 1 or more.
        gamma: factor of the inner product, 1 / d if None.
        coef: what is added to it, 0 or more.

    Raises:
        ConfigError: a degree, gamma or coef that makes no kernel.
        DataError: fewer than 2 rows, other widths, values that aren't finite, or too large for a float32 power.
    """
    x, y = as_pair(real, synthetic, "kid", need=2, dtype=None)
    return _kid(x, y, Polynomial(degree, gamma, coef))


def kid_subsets(
    real: Float[Array, "n d"],
    synthetic: Float[Array, "m d"],
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> tuple[float, float]:
    """Mean and standard deviation of KID over random subsets, as the paper's code, torchmetrics and torch-fidelity print it.

    Subsets of both sets are drawn without replacement, afresh each time; the deviation is over the subsets (divided by
    their number, not one less). Its mean estimates what `kid` gives exactly, with a spread that the draw adds.

    Args:
        real: features of real images.
        synthetic: features of synthetic images.
        num_subsets: how many draws.
        subset_size: rows of each set in a draw.
        seed: of the draws.
        degree: see `kid`.
        gamma: see `kid`.
        coef: see `kid`.

    Raises:
        ConfigError: as `kid`, no subsets, or subsets of fewer than 2 rows.
        DataError: as `kid`, or a set smaller than a subset.
    """
    if num_subsets < 1 or subset_size < 2:
        raise ConfigError(f"kid: {num_subsets} subsets of {subset_size} rows: at least 1 of 2 rows is needed")
    kernel = Polynomial(degree, gamma, coef)
    x, y = as_pair(real, synthetic, f"kid in subsets of {subset_size}", need=subset_size, dtype=None)
    of_x, of_y = Subsets(x, "kid, real", seed), Subsets(y, "kid, synthetic", seed)
    values = [_kid(of_x.draw(subset_size, index), of_y.draw(subset_size, index), kernel) for index in range(num_subsets)]
    return float(np.mean(values)), float(np.std(values))


def mmd_rbf(
    real: Float[Array, "n d"], synthetic: Float[Array, "m d"], sigma: float | None = None, *, unbiased: bool = True
) -> float:
    """MMD^2 with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) (Gretton et al. 2012, eq. 3 and 5), not scaled, at most 2.

    Cost O((n + m)^2 d) time and O(n chunk) memory; distances in the features' own precision, sums in float64.

    Args:
        real: features of real images.
        synthetic: features of synthetic images.
        sigma: bandwidth, in units of the features; None takes the median distance between real rows (of 1,000 of them,
            drawn from a fixed stream, where there are more).
        unbiased: the U-statistic (0 in the mean for equal distributions, single values may be negative), else the
            V-statistic that counts each row with itself, is never negative and is larger by about 1/n + 1/m.

    Raises:
        ConfigError: a bandwidth that isn't above 0.
        DataError: fewer than 2 rows, other widths, values that aren't finite, or a median distance of 0.
    """
    x, y = as_pair(real, synthetic, "mmd_rbf", need=2, dtype=None)
    if sigma is None:
        sigma = median_distance(x)
        if sigma == 0:
            raise DataError("mmd_rbf: half of the real rows or more are equal, so their median distance is 0: give a sigma")
    if not 0 < sigma < math.inf:
        raise ConfigError(f"mmd_rbf: sigma {sigma}: a number above 0 is needed, or None for the median distance")
    unit = power_of_two(x, y)
    if unit != 1:  # the value is the same, and no square vanishes or overflows
        x, y, sigma = x / unit, y / unit, sigma / unit
    if sigma < 1e-150:
        told = f"a bandwidth of {sigma * unit:.3g} is nothing beside features as large as {unit:.3g}"
        raise DataError(f"mmd_rbf: {told}: give a larger sigma, or leave outliers out")
    centre = _middle(x, y)
    rate = 0.5 / sigma**2
    chunks = (rows for z in (x, y) for rows in z.split(_chunk(z)))
    largest = max(float(torch.linalg.vector_norm(rows - centre, dim=1).max()) for rows in chunks)
    if x.dtype == torch.float32 and 12 * torch.finfo(x.dtype).eps * largest**2 * rate > 1e-4:
        x, y, centre = x.double(), y.double(), centre.double()  # an outlier, or clusters far apart for the bandwidth
    lost = int(unbiased)
    within = [_rbf_sum(z, z, centre, rate) / (len(z) * (len(z) - lost)) for z in (x, y)]
    value = sum(within) - 2 * _rbf_sum(x, y, centre, rate) / (len(x) * len(y))
    return _finite(value, x, y, "mmd_rbf")


def cmmd(
    real: Float[Array, "n d"], synthetic: Float[Array, "m d"], *, sigma: float = CMMD_SIGMA, unbiased: bool = False
) -> float:
    """CMMD of CLIP embeddings: 1,000 x MMD^2 under a Gaussian kernel with sigma = 10 (Jayasumana et al. 2024, section 4).

    The convention of the authors' code: rows of unit length (they are brought to it here, which leaves unit rows as they
    are), the V-statistic, the factor 1,000. Their embeddings are CLIP ViT-L/14 at 336 px; other features have another scale.

    Args:
        real: embeddings of real images.
        synthetic: embeddings of synthetic images.
        sigma: bandwidth.
        unbiased: the U-statistic in place of the authors' V-statistic, see `mmd_rbf`.

    Raises:
        ConfigError: a bandwidth that isn't above 0.
        DataError: as `mmd_rbf`, or a row of zeros, which has no direction.
    """
    x, y = as_pair(real, synthetic, "cmmd", need=2, dtype=None)
    return CMMD_SCALE * mmd_rbf(unit_rows(x, "cmmd: real"), unit_rows(y, "cmmd: synthetic"), sigma, unbiased=unbiased)


def unit_rows(x: Float[Tensor, "n d"], name: str) -> Float[Tensor, "n d"]:
    """The rows divided by their lengths.

    Raises:
        DataError: a row of zeros.
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    empty = torch.nonzero(largest[:, 0] == 0)[:, 0].tolist()
    if empty:
        raise DataError(f"{name}: {len(empty)} of {len(x)} rows are all 0 and have no direction, the first is row {empty[0]}")
    x = x / largest  # so that no square overflows
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def median_distance(x: Float[Tensor, "n d"]) -> float:
    """Median distance between different rows, of 1,000 rows drawn from a fixed stream where there are more."""
    if len(x) > MEDIAN_ROWS:
        x = Subsets(x, "median distance", 0).draw(MEDIAN_ROWS, 0)
    return torch.nn.functional.pdist(x.double()).median().item()


def _middle(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """A point between both means, the same for (x, y) and (y, x), so that differences from it are small numbers."""
    # in chunks: a mean in float64 of all rows at once casts them all
    means = [sum(rows.sum(dim=0, dtype=torch.float64) for rows in z.split(_chunk(z))) / len(z) for z in (x, y)]
    return ((means[0] + means[1]) / 2).to(x.dtype)


def _tiles(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], centre: Float[Tensor, " d"]) -> Iterator[tuple]:
    """(rows of x, rows of y, x - centre, y - centre, weight) for each tile; of a set with itself one triangle, twice.

    Rows are centred for each tile anew: 1% of the time of its product, and no copy of the features.
    """
    size = _chunk(x)
    for column in range(0, len(y), size):
        v = y[column : column + size] - centre
        for row in range(0, column + 1 if x is y else len(x), size):
            u = v if x is y and row == column else x[row : row + size] - centre
            yield slice(row, row + size), slice(column, column + size), u, v, 2 if x is y and row != column else 1


def _chunk(x: Tensor) -> int:
    return CHUNK * ON_CUDA if x.is_cuda else CHUNK


def _total(tile: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Rows are summed in the tile's precision (1,024 terms, pairwise), their sums in float64."""
    return tile.sum(dim=1).sum(dtype=torch.float64)


def _finite(value: float, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], metric: str) -> float:
    if not math.isfinite(value):
        size = max(z.abs().max().item() for z in (x, y))
        raise DataError(f"{metric}: features as large as {size:.3g} overflow {x.dtype}: divide them, or pass float64")
    return value


# The Gaussian kernel


def _rbf_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], centre: Float[Tensor, " d"], rate: float) -> float:
    """Sum of k - 1 over all pairs: the ones cancel between the terms of MMD^2, and k - 1 keeps a float32's digits."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, columns, u, v, weight in _tiles(x, y, centre):
        tile = product(u, v).mul_(2 * rate)
        tile.sub_(u.square().sum(dim=1)[:, None], alpha=rate).sub_(v.square().sum(dim=1)[None, :], alpha=rate)
        tile = tile.clamp_(max=0).expm1_()
        if x is y and rows == columns:
            tile.fill_diagonal_(0)  # a row with itself: k is 1
        total += weight * _total(tile)
    return total.item()


# The polynomial kernel. With c between both means, u = x - c and v = y - c it is (p + t)^q, where t = gamma u.v is small
# and p = a(x) + b(y) is affine. The sum of p^q + q p^(q-1) t has a closed form, which leaves the terms of order t^2.


@dataclass(frozen=True)
class _Side:
    """One set: its rows, the affine part of each, and the sums that the closed form needs; float64 but for the rows."""

    rows: Float[Tensor, "n d"]
    affine: Float[Tensor, " n"]
    power_sums: Float[Tensor, " p"]  # sum of a^k, k = 0 .. q
    power_vectors: Float[Tensor, "q d"]  # sum of a^k u, k = 0 .. q - 1
    squares: Float[Tensor, " n"]  # gamma u.u


def _kid(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], kernel: Polynomial) -> float:
    gamma = kernel.gamma or 1 / x.shape[1]
    centre = _middle(x, y)
    sides = _side(x, centre, kernel, gamma), _side(y, centre, kernel, gamma)
    closed = kernel.degree == 3 and x.shape[1] ** 2 < len(x) + len(y)
    if closed:
        within_x, within_y, between = _by_moments(*sides, centre, gamma)
    else:
        within_x, within_y, between = _by_tiles(*sides, centre, kernel.degree, gamma)
    n, m = len(x), len(y)
    low = [(_low_order(side, side, kernel.degree, gamma) - _low_order_diagonal(side, kernel.degree)) for side in sides]
    value = (low[0] + within_x) / (n * (n - 1)) + (low[1] + within_y) / (m * (m - 1))
    value -= 2 * (_low_order(sides[0], sides[1], kernel.degree, gamma) + between) / (n * m)
    return _finite(value, x, y, "kid")


def _side(x: Float[Tensor, "n d"], centre: Float[Tensor, " d"], kernel: Polynomial, gamma: float) -> _Side:
    c = centre.double()
    constant = (kernel.coef + gamma * c.dot(c)) / 2
    affine, squares = [], []
    vectors = torch.zeros((kernel.degree, x.shape[1]), dtype=torch.float64, device=x.device)
    for rows in x.split(_chunk(x)):
        u = rows.double() - c
        a = gamma * (u @ c) + constant
        for power in range(kernel.degree):
            vectors[power] += a.pow(power) @ u
        affine.append(a)
        squares.append(gamma * u.square().sum(dim=1))
    a = torch.cat(affine)
    sums = torch.stack([a.pow(power).sum() for power in range(kernel.degree + 1)])
    return _Side(x, a, sums, vectors, torch.cat(squares))


def _low_order(x: _Side, y: _Side, degree: int, gamma: float) -> float:
    """Sum of p^q + q p^(q-1) t over all pairs, by the binomial theorem."""
    zeroth = sum(math.comb(degree, k) * x.power_sums[k] * y.power_sums[degree - k] for k in range(degree + 1))
    pairs = zip(x.power_vectors, y.power_vectors.flip(0), strict=True)
    first = sum(math.comb(degree - 1, k) * u.dot(v) for k, (u, v) in enumerate(pairs))
    return float(zeroth + degree * gamma * first)


def _low_order_diagonal(x: _Side, degree: int) -> float:
    p = 2 * x.affine
    return (p.pow(degree) + degree * p.pow(degree - 1) * x.squares).sum().item()


def _by_tiles(x: _Side, y: _Side, centre: Float[Tensor, " d"], degree: int, gamma: float) -> tuple[float, float, float]:
    """What the closed form leaves of the sums over pairs of different rows of x, of y, and over all pairs between them."""
    return _tiled(x, x, centre, degree, gamma), _tiled(y, y, centre, degree, gamma), _tiled(x, y, centre, degree, gamma)


def _tiled(x: _Side, y: _Side, centre: Float[Tensor, " d"], degree: int, gamma: float) -> float:
    total = torch.zeros((), dtype=torch.float64, device=centre.device)
    if degree == 1:
        return 0.0
    a, b = x.affine.to(centre.dtype), y.affine.to(centre.dtype)
    for rows, columns, u, v, weight in _tiles(x.rows, y.rows, centre):
        t = product(u, v).mul_(gamma)
        tile = _remainder(t, a[rows, None] + b[None, columns], degree)
        if x is y and rows == columns:
            tile.fill_diagonal_(0)
        total += weight * _total(tile)
    return total.item()


def _remainder(t: Float[Tensor, "b c"], p: Float[Tensor, "b c"], degree: int) -> Float[Tensor, "b c"]:
    """(p + t)^q - p^q - q p^(q-1) t as t^2 D, where D_2 = 1 and D_(q+1) = q p^(q-1) + (p + t) D_q."""
    if degree == 2:
        return t.square_()
    factor = torch.add(t, p, alpha=3)
    for q in range(3, degree):
        factor = (p + t).mul_(factor).add_(p.pow(q - 1), alpha=q)
    return factor.mul_(t).mul_(t)


def _by_moments(x: _Side, y: _Side, centre: Float[Tensor, " d"], gamma: float) -> tuple[float, float, float]:
    """As `_by_tiles` for the cubic kernel, through moments: sum of 3 p t^2 + t^3 = 3 <M_a, M'> + 3 <M, M'_b> + <T, T'>.

    M is the sum of u u', M_a that of a u u', T the symmetric third moment, of which one slice is held at a time: T_ijk
    with j, k >= i, counted as often as the three indices can be put in order.
    """
    columns = [((side.rows - centre) * gamma**0.5).T.contiguous() for side in (x, y)]
    plain = [_product(u, u) for u in columns]
    weighted = [_product(u * side.affine.to(u.dtype), u) for u, side in zip(columns, (x, y), strict=True)]
    within = [6 * (moment * own).sum() for moment, own in zip(weighted, plain, strict=True)]
    sums = torch.stack([*within, 3 * ((weighted[0] * plain[1]).sum() + (plain[0] * weighted[1]).sum())])
    for i in range(len(centre)):
        first, second = (_product(u[i:], u[i:], u[i]) for u in columns)
        counts = torch.full_like(first, 3)
        counts[0], counts[:, 0], counts[0, 0] = 1.5, 1.5, 1
        scaled = counts * first
        sums += torch.stack([(scaled * first).sum(), (counts * second * second).sum(), (scaled * second).sum()])
    diagonal = [(side.squares.square() * (6 * side.affine + side.squares)).sum() for side in (x, y)]
    return (sums[0] - diagonal[0]).item(), (sums[1] - diagonal[1]).item(), sums[2].item()


def _product(u: Float[Tensor, "r n"], v: Float[Tensor, "s n"], weight: Float[Tensor, " n"] | None = None) -> Float[Tensor, "r s"]:
    """(u weight) v' in chunks of the rows' own precision that are added up in float64."""
    total = torch.zeros((len(u), len(v)), dtype=torch.float64, device=u.device)
    size = _chunk(u)
    for start in range(0, u.shape[1], size):
        part = slice(start, start + size)
        total += product(u[:, part] if weight is None else u[:, part] * weight[part], v[:, part])
    return total
