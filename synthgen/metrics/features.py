"""The checks that every metric makes of its features; an extractor's id, and images in micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from synthgen.errors import DataError
from synthgen.shapes import Float, UInt8

Array = Tensor | np.ndarray
"""What a metric takes: a torch tensor or a numpy array."""

MICRO_BATCH = 128
"""Images a forward pass; fixed and padded, since a network's last bits change with the batch size."""


def extractor_id(network: nn.Module, description: str) -> str:
    """A name for `network`: the description and the sha256 of its weights, so that two extractors never pass for one.

    >>> extractor_id(nn.Identity(), "pixels")[:14]
    'pixels sha256:'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return f"{description} sha256:{digest.hexdigest()}"


def as_features(
    features: Float[Array, "n d"], name: str, need: int = 1, dtype: torch.dtype | None = torch.float64
) -> Float[Tensor, "n d"]:
    """The features as a tensor of floats, checked.

    Args:
        features: floats of any width.
        name: what they are, for the error ("fid: real features").
        need: fewest rows.
        dtype: of the result; None keeps float32 and float64 as they are (float16 and bfloat16 become float32).

    Raises:
        DataError: not two-dimensional, fewer than `need` rows, or NaN or infinite values.
    """
    if isinstance(features, np.ndarray) and (not features.flags.writeable or min(features.strides, default=0) < 0):
        features = features.copy()  # torch can't hold a view of either
    x = torch.as_tensor(features).detach()
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"{name}: expected shape (n, d), found {tuple(x.shape)}")
    if len(x) < need:
        raise DataError(f"{name}: {len(x)} rows are too few, at least {need} are needed")
    check_finite(x, name)
    return x.to(dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32))


def as_pair(
    real: Float[Array, "n d"],
    synthetic: Float[Array, "m d"],
    metric: str,
    need: int,
    dtype: torch.dtype | None = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Both feature sets as `as_features`, of the same width, dtype and device (that of `real`).

    Args:
        real: features of real images.
        synthetic: features of synthetic images.
        metric: name of the metric, for the error.
        need: fewest rows of each.
        dtype: of both; None takes the wider of the two (float64 if either is float64, else float32).

    Raises:
        DataError: as `as_features`, or the two widths differ.
    """
    x = as_features(real, f"{metric}: real features", need, dtype)
    y = as_features(synthetic, f"{metric}: synthetic features", need, dtype)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"{metric}: real features have {x.shape[1]} dimensions, synthetic ones {y.shape[1]}: one extractor for both"
        )
    wider = torch.promote_types(x.dtype, y.dtype)
    return x.to(wider), y.to(x.device, wider)


def check_finite(x: Float[Tensor, "n d"], name: str, keys: Sequence[str] = ()) -> None:
    """Raises a DataError that says how many rows hold NaN or infinite values, and which (the first five).

    With the rows' `keys` it also says whose the first one is.
    """
    if bool(torch.isfinite(x.sum(dim=1)).all()):  # much faster than to look at every value, and never wrong when it says so
        return
    bad = ~torch.isfinite(x).all(dim=1)
    if bool(bad.any()):
        first, *others = torch.nonzero(bad)[:, 0].tolist()
        more = f" (then {', '.join(map(str, others[:4]))}{', ...' if len(others) > 4 else ''})" if others else ""
        count, called = f"{len(others) + 1} of {len(x)} rows", f", {keys[first]!r}" if keys else ""
        found = f"{count} hold NaN or infinite values, the first is row {first}{called}{more}"
        raise DataError(f"{name}: {found}; leave them out, or mend what made them")


def micro_batches(
    images: Iterable[UInt8[np.ndarray, "b c h w"]], size: int
) -> Iterator[tuple[UInt8[np.ndarray, "b c h w"], int]]:
    """The same images in arrays of exactly `size`, and how many of each count: the last one repeats its last image.

    However the incoming arrays are cut, the outgoing ones are the same.
    """
    waiting = None
    for array in images:
        waiting = array if waiting is None or not len(waiting) else np.concatenate([waiting, array])
        whole = len(waiting) - len(waiting) % size
        for start in range(0, whole, size):
            yield np.ascontiguousarray(waiting[start : start + size]), size
        waiting = waiting[whole:]
    if waiting is not None and len(waiting):
        yield np.concatenate([waiting, np.repeat(waiting[-1:], size - len(waiting), axis=0)]), len(waiting)
