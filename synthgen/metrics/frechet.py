"""Fréchet distance between two Gaussians (Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from synthgen.metrics.features import Array, as_pair
from synthgen.shapes import Float


def frechet_distance(real: Float[Array, "n d"], synthetic: Float[Array, "m d"]) -> float:
    """FID of any feature set: |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), in float64, covariances over n - 1.

    Exactly symmetric sets may come out a rounding error below 0 and are given as 0. It is biased upwards by about
    const/n: read it against real against real at the same n (`gate.judge`), never alone.

    Raises:
        DataError: fewer than 2 rows, other widths, or values that aren't finite.
    """
    x, y = as_pair(real, synthetic, "fid", need=2)
    shift = x.mean(dim=0) - y.mean(dim=0)
    x, y = _centred(x), _centred(y)  # rows / sqrt(n - 1), so that S = x' x
    traces = (x.square().sum() + y.square().sum()).item()
    distance = shift.square().sum().item() + traces - 2 * _trace_sqrt_product(x, y)
    return 0.0 if -1e-6 * traces < distance < 0 else distance


def _centred(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return (x - x.mean(dim=0)) / (len(x) - 1) ** 0.5


def _trace_sqrt_product(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """tr (S_1 S_2)^(1/2) with S_1 = x' x and S_2 = y' y.

    For any factors S = F F' it is the nuclear norm of F_1' F_2. Of a set with n <= d the rows themselves are the
    factor (cost n^2 d); else S_1 = L L' and the sum of the roots of the eigenvalues of L' S_2 L does (cost d^3).
    """
    d = x.shape[1]
    if len(x) <= d or len(y) <= d:
        return torch.linalg.svdvals(_factor(x).T @ _factor(y)).sum().item()
    factor = _factor(x)
    projected = y @ factor
    return torch.linalg.eigvalsh(projected.T @ projected).clamp(min=0).sqrt().sum().item()


def _factor(x: Float[Tensor, "n d"]) -> Float[Tensor, "d r"]:
    """F with F F' = x' x: the rows where they are few, else Cholesky, else (dead features) the symmetric root."""
    if len(x) <= x.shape[1]:
        return x.T
    covariance = x.T @ x
    jitter = 1e-14 * covariance.diagonal().mean()
    lower, failed = torch.linalg.cholesky_ex(covariance + jitter * torch.eye(len(covariance), dtype=x.dtype, device=x.device))
    if not bool(failed):
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
