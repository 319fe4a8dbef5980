"""Images -> features of a network, and the checks that every metric makes of its features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.shapes import Float
from synthgen.types import Batch, FeatureSet

Array = Tensor | np.ndarray
"""What a metric takes: a torch tensor or a numpy array."""

MICRO_BATCH = 128
"""Images a forward pass; fixed and padded, since a network's last bits change with the batch size."""


def extract(network: nn.Module, batches: Iterable[Batch], extractor: str, device: torch.device | str = "cpu") -> FeatureSet:
    """Features of all images of `batches`, in their order; the same bytes however the batches are cut.

    Args:
        network: maps float images in [-1, 1], shape (b, c, h, w), to features, shape (b, d). It runs in eval mode and
            comes back in the mode it was in.
        batches: the images; at least one.
        extractor: name of the extractor, see `extractor_id`.
        device: where the network runs; it is moved there.

    Raises:
        DataError: no images, or features that aren't finite.
    """
    mode = network.training
    network.to(device).eval()
    parts: list[Tensor] = []
    labels: list[np.ndarray] = []
    keys: list[str] = []
    try:
        for batch in _rebatch(batches, MICRO_BATCH):
            padding = np.repeat(batch.images[-1:], MICRO_BATCH - len(batch), axis=0)
            with torch.no_grad():
                features = network(to_float(np.concatenate([batch.images, padding])).to(device))
            parts.append(features[: len(batch)].float().cpu())
            labels.append(batch.labels)
            keys.extend(batch.keys)
    finally:
        network.train(mode)
    if not parts:
        raise DataError(f"{extractor}: no images to take features of")
    features = torch.cat(parts)
    check_finite(features, extractor)
    return FeatureSet(extractor, features.numpy(), np.concatenate(labels), tuple(keys))


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


def as_features(features: Float[Array, "n d"], name: str, need: int = 1) -> Float[Tensor, "n d"]:
    """The features as a float64 tensor, checked.

    Args:
        features: floats of any width.
        name: what they are, for the error ("fid: real features").
        need: fewest rows.

    Raises:
        DataError: not two-dimensional, fewer than `need` rows, or NaN or infinite values.
    """
    x = torch.as_tensor(features)
    if x.ndim != 2 or x.shape[1] == 0:
        raise DataError(f"{name}: expected shape (n, d), found {tuple(x.shape)}")
    if len(x) < need:
        raise DataError(f"{name}: {len(x)} rows are too few, at least {need} are needed")
    check_finite(x, name)
    return x.double()


def as_pair(real: Float[Array, "n d"], synthetic: Float[Array, "m d"], metric: str, need: int) -> tuple[Tensor, Tensor]:
    """Both feature sets as `as_features`, of the same width.

    Raises:
        DataError: as `as_features`, or the two widths differ.
    """
    x, y = as_features(real, f"{metric}: real features", need), as_features(synthetic, f"{metric}: synthetic features", need)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"{metric}: real features have {x.shape[1]} dimensions, synthetic ones {y.shape[1]}: one extractor for both"
        )
    return x, y.to(x.device)


def check_finite(x: Float[Tensor, "n d"], name: str) -> None:
    """Raises a DataError that says in how many rows values are NaN or infinite, and which is the first."""
    bad = ~torch.isfinite(x).all(dim=1)
    if bool(bad.any()):
        first = int(torch.nonzero(bad)[0, 0])
        raise DataError(f"{name}: {int(bad.sum())} of {len(x)} rows hold NaN or infinite values, the first is row {first}")


def _rebatch(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same images in batches of `size`, the last one maybe smaller."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) < size:
            continue
        whole = Batch.concatenate(waiting)
        cut = len(whole) - len(whole) % size
        for start in range(0, cut, size):
            yield whole.take(np.arange(start, start + size))
        waiting = [whole.take(np.arange(cut, len(whole)))]
    rest = [batch for batch in waiting if len(batch)]
    if rest:
        yield Batch.concatenate(rest)
