"""Fréchet distance between two Gaussians (Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthgen.errors import DataError
from synthgen.metrics.features import Array, as_features, as_pair
from synthgen.metrics.products import product
from synthgen.shapes import Float

CHUNK = 8192
"""Rows of one product; sums of products go on in float64 from there."""

SMALL = 1e-5
"""FID as a share of the covariances' traces below which float32 products may be all there is of it."""

NARROW = 256
"""Dimensions up to which all is float64: there it costs next to nothing."""

BLOCK = 256
"""Columns of a block of a symmetric matrix, of which only the lower half is computed."""


@dataclass(frozen=True)
class Moments:
    """A set's first two moments: all that FID needs of it, in O(d^2) memory. Sets are added up with `merge`.

    Attributes:
        n: rows.
        mean: float64.
        scatter: sum over rows of (x - mean)(x - mean)', float64.
    """

    n: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @staticmethod
    def of(features: Float[Array, "n d"], name: str = "fid: features") -> Moments:
        """The moments of a set, one row or more.

        Products are taken about the mean of some rows. Of float32 features with d > `NARROW` and n >= 4 d they are
        float32 within chunks of `CHUNK` rows and are summed up in float64, which costs FID a relative error of about 1e-8
        to 3e-7. Else all is float64: with fewer rows the covariance is nearly singular, and narrow ones cost little.

        Raises:
            DataError: not of shape (n, d), or values that aren't finite.
        """
        x = as_features(features, name, dtype=None)
        n, d = x.shape
        wide = x.dtype == torch.float64 or n < 4 * d or d <= NARROW
        shift = x[:: max(1, n // CHUNK)].mean(dim=0, dtype=torch.float64).to(x.dtype)  # from all over: rows may be sorted
        total = torch.zeros(d, dtype=torch.float64, device=x.device)
        scatter = torch.zeros((d, d), dtype=torch.float64, device=x.device)
        for rows in x.split(CHUNK):
            z = rows.T.clone(memory_format=torch.contiguous_format).sub_(shift[:, None])
            z = z.double() if wide else z
            total += z.sum(dim=1)
            for start in range(0, d, BLOCK):
                scatter[start:, start : start + BLOCK] += product(z[start:], z[start : start + BLOCK])
        scatter = scatter.tril() + scatter.tril(-1).T
        if not bool(torch.isfinite(scatter.diagonal()).all()):
            raise DataError(
                f"{name}: values as large as {float(x.abs().max()):.3g} overflow {x.dtype}: divide them, or pass float64"
            )
        return Moments(n, shift + total / n, scatter.sub_(torch.outer(total, total / n)))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together (Chan, Golub & LeVeque 1979).

        Raises:
            DataError: the widths differ.
        """
        if len(self.mean) != len(other.mean):
            raise DataError(f"fid: moments of {len(self.mean)} and of {len(other.mean)} dimensions: one extractor for both")
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), scatter)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Over n - 1."""
        return self.scatter / (self.n - 1)


def frechet_distance(real: Float[Array, "n d"], synthetic: Float[Array, "m d"]) -> float:
    """FID of any feature set: |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), covariances over n - 1, in float64.

    Exactly symmetric sets may come out a rounding error below 0 and are given as 0. It is biased upwards by about
    const/n: read it against real against real at the same n (`gate.judge`), never alone.

    Cost: n d^2 + m d^2 for the moments and some 6 d^3 for the root. For any factors S = F F' the root's trace is the sum
    of the singular values of F_1' F_2; of a set with n <= d the centred rows are the factor, and S is never formed.

    Raises:
        DataError: fewer than 2 rows, other widths, or values that aren't finite.
    """
    x, y = as_pair(real, synthetic, "fid", need=2, dtype=None)
    few, many = sorted((x, y), key=len)
    if len(few) > x.shape[1]:
        moments_x, moments_y = Moments.of(x), Moments.of(y)
        distance = frechet_distance_of(moments_x, moments_y)
        total = (moments_x.covariance.trace() + moments_y.covariance.trace()).item()
        if x.dtype == torch.float64 or x.shape[1] <= NARROW or distance > SMALL * total:
            return distance
        return frechet_distance_of(Moments.of(x.double()), Moments.of(y.double()))  # what float32 can't tell from 0
    few_mean, few_rows = _centred(few)
    if len(many) <= x.shape[1]:
        many_mean, many_rows = _centred(many)
        factor, trace = many_rows.T, many_rows.square().sum()
    else:
        moments = Moments.of(many)
        many_mean, factor, trace = moments.mean, _factor(moments.covariance)[0], moments.covariance.trace()
    traces = (few_rows.square().sum() + trace).item()
    return _distance(few_mean - many_mean, traces, torch.linalg.svdvals(few_rows @ factor).sum().item())


def frechet_distance_of(real: Moments, synthetic: Moments) -> float:
    """FID of two sets that only their moments are left of, see `frechet_distance`.

    Raises:
        DataError: fewer than 2 rows, or other widths.
    """
    for name, moments in (("real", real), ("synthetic", synthetic)):
        if moments.n < 2:
            raise DataError(f"fid: {name} features: {moments.n} rows are too few, at least 2 are needed")
    if len(real.mean) != len(synthetic.mean):
        raise DataError(f"fid: moments of {len(real.mean)} and of {len(synthetic.mean)} dimensions: one extractor for both")
    a, b = real.covariance, synthetic.covariance
    roots = torch.linalg.eigvalsh(_projected(b, *_factor(a))).clamp_(min=0).sqrt_()
    return _distance(real.mean - synthetic.mean, (a.trace() + b.trace()).item(), roots.sum().item())


def _centred(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "n d"]]:
    """Mean, and the rows z in float64 for which S = z' z."""
    x = x.double()
    mean = x.mean(dim=0)
    return mean, (x - mean) / (len(x) - 1) ** 0.5


def _distance(shift: Float[Tensor, " d"], traces: float, root: float) -> float:
    distance = shift.square().sum().item() + traces - 2 * root
    return 0.0 if -1e-8 * traces < distance < 0 else distance


def _factor(covariance: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], bool]:
    """F with F F' = S, and whether it is lower triangular: Cholesky, or (dead features, n <= d) the symmetric root."""
    jitter = 1e-14 * covariance.diagonal().mean()
    lower, failed = torch.linalg.cholesky_ex(covariance + jitter * torch.eye(len(covariance), dtype=torch.float64).to(covariance))
    if not bool(failed):
        return lower, True
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt(), False


def _projected(covariance: Float[Tensor, "d d"], factor: Float[Tensor, "d d"], triangular: bool) -> Float[Tensor, "d d"]:
    """The lower half of F' S F; of a triangular F the zeros are left out of both products."""
    if not triangular:
        return factor.T @ covariance @ factor
    right, out = torch.empty_like(covariance), torch.zeros_like(covariance)
    for start in range(0, len(covariance), BLOCK):
        columns = slice(start, start + BLOCK)
        right[:, columns] = covariance[:, start:] @ factor[start:, columns]
    for start in range(0, len(covariance), BLOCK):
        rows = slice(start, start + BLOCK)
        out[rows, : start + BLOCK] = factor[start:, rows].T @ right[start:, : start + BLOCK]
    return out
