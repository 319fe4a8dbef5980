"""KID: squared MMD under a cubic polynomial kernel (Binkowski et al. 2018, "Demystifying MMD GANs", section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from synthgen.metrics.features import Array, as_pair
from synthgen.shapes import Float

CHUNK = 1024


def kid(real: Float[Array, "n d"], synthetic: Float[Array, "m d"]) -> float:
    """Unbiased MMD^2 with k(x, y) = (x.y / d + 1)^3: the full U-statistic, without the usual random subsets.

    It is 0 in the mean where both sets come from one distribution, so single values may be negative. Cost O(n m d) time
    and O(n chunk) memory.

    Raises:
        DataError: fewer than 2 rows, other widths, or values that aren't finite.
    """
    x, y = as_pair(real, synthetic, "kid", need=2)
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _kernel_trace(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel_trace(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Sum of k over all pairs, in tiles."""
    d = x.shape[1]
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for rows in x.split(CHUNK):
        tile = (rows @ y.T).div_(d).add_(1)
        total += (tile * tile).mul_(tile).sum()
    return total.item()


def _kernel_trace(x: Float[Tensor, "n d"]) -> float:
    return (x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum().item()
