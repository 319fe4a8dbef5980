"""Matrix products for tiles of distances, at the speed of the machine and in the operands' own precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from synthgen.shapes import Float

WORTHWHILE = 2**22
"""Multiplications from which another kernel's start-up doesn't count."""


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """a b', in the operands' precision, also under autocast and where TF32 is allowed.

    On a CPU float32 products go through oneDNN where torch has it: `torch.mm` takes MKL, which leaves half of an AMD
    processor's vector unit idle (105 against 230 GFLOP/s on one Zen 5 core, torch 2.13). Both sum in float32.
    """
    with exact(a.device):
        if a.dtype == torch.float32 and a.device.type == "cpu" and a.shape[0] * a.shape[1] * b.shape[0] >= WORTHWHILE:
            fast = _onednn()
            if fast is not None:
                return fast(a.contiguous(), b.contiguous())  # of strided rows it takes a path a thousand times as slow
        return a @ b.T


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Within it products keep their operands' precision: no autocast (a Lightning loop may be under it), no TF32."""
    precision = torch.get_float32_matmul_precision()
    lowered = device.type == "cuda" and precision != "highest"
    try:
        if lowered:
            torch.set_float32_matmul_precision("highest")
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if lowered:
            torch.set_float32_matmul_precision(precision)


@lru_cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's linear layer as a product, None where torch comes without it or it isn't exact to float32."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        kernel = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None

    def product(a: Tensor, b: Tensor) -> Tensor:
        return kernel(a, b, None, "none", [], "")

    x = torch.linspace(-1, 1, 64 * 96, dtype=torch.float64).sin_().view(64, 96)
    try:
        found = product(x.float(), x.float()).double()
    except RuntimeError:
        return None
    return product if bool((found - x @ x.T).abs().max() < 1e-4) else None
