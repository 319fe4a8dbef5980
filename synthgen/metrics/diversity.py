"""Vendi score: the effective number of different images in one set (Friedman and Dieng 2023, "The Vendi Score")."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from synthgen.errors import ConfigError
from synthgen.metrics.features import Array, as_features
from synthgen.metrics.kernel import CHUNK, unit_rows
from synthgen.metrics.products import product
from synthgen.shapes import Float


def vendi(features: Float[Array, "n d"], q: float = 1.0) -> float:
    """The exponential of the entropy of the eigenvalues of K / n, where K_ij is the cosine of rows i and j (eq. 2).

    It lies in [1, min(n, d)]: 1 for a set of one image over and over, n for rows at right angles. It knows no real set:
    noise is diverse too, so read it beside that of real images, at the same n.

    K / n and the d x d matrix X' X / n of unit rows share their nonzero eigenvalues, so it costs n d min(n, d) +
    min(n, d)^3 and not n^3; products in the features' own precision, sums and eigenvalues in float64.

    Args:
        features: of one set.
        q: order of the Rényi entropy (Pasarkar and Dieng 2024): 1 is Shannon's; smaller ones give rare kinds more
            weight, larger ones common kinds; `math.inf` looks at the largest eigenvalue alone.

    Raises:
        ConfigError: an order that isn't above 0.
        DataError: no rows, rows of zeros, or values that aren't finite.
    """
    if not q > 0:
        raise ConfigError(f"vendi: order {q}: a number above 0 is needed")
    x = unit_rows(as_features(features, "vendi: features", dtype=None), "vendi: features")
    shares = torch.linalg.eigvalsh(_gram(x) / len(x))
    shares = shares[shares > 4 * torch.finfo(x.dtype).eps * shares.max()]  # the rest is rounding, which orders < 1 would count
    shares = shares / shares.sum()
    if q == 1:
        return torch.special.entr(shares).sum().exp().item()
    if q == math.inf:
        return 1 / shares.max().item()
    return shares.pow(q).sum().pow(1 / (1 - q)).item()


def _gram(x: Float[Tensor, "n d"]) -> Float[Tensor, "r r"]:
    """X' X or X X', whichever is smaller, in float64."""
    n, d = x.shape
    if n <= d:
        return product(x, x).double()
    total = torch.zeros((d, d), dtype=torch.float64, device=x.device)
    for rows in x.split(CHUNK):
        total += product(rows.T, rows.T)
    return total
