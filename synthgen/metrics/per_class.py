"""Any metric of two sets, class by class: a dropped class and swapped labels show here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from synthgen.errors import DataError
from synthgen.metrics.features import Array
from synthgen.shapes import Float, Int64

Value = TypeVar("Value")


def per_class(
    metric: Callable[[Tensor, Tensor], Value],
    real: Float[Array, "n d"],
    real_labels: Int64[Array, " n"],
    synthetic: Float[Array, "m d"],
    synthetic_labels: Int64[Array, " m"],
    need: int,
) -> dict[int, Value | None]:
    """`metric` of the real and the synthetic rows of each class that either set holds, in the order of the labels.

    Args:
        metric: of two feature sets: `frechet_distance`, `kid`, `prdc`, or a partial of one.
        real: features of real images.
        real_labels: their classes.
        synthetic: features of synthetic images.
        synthetic_labels: their classes.
        need: fewest rows of a class on either side for a value; with fewer the class is there, with None.

    Returns:
        label -> value, or None where a side has fewer than `need` rows of that class.

    Raises:
        DataError: as many labels as rows aren't given, or what `metric` raises, with the class.
    """
    x, y = torch.as_tensor(real), torch.as_tensor(synthetic)
    labels = [np.asarray(torch.as_tensor(given).cpu()) for given in (real_labels, synthetic_labels)]
    for name, rows, given in (("real", x, labels[0]), ("synthetic", y, labels[1])):
        if given.shape != (len(rows),):
            raise DataError(f"per class: {len(rows)} {name} rows, but labels of shape {given.shape}")
    values: dict[int, Value | None] = {}
    for label in np.union1d(*labels).tolist():
        own = [torch.from_numpy(np.flatnonzero(given == label)) for given in labels]
        if min(map(len, own)) < need:
            values[label] = None
            continue
        try:
            values[label] = metric(x[own[0].to(x.device)], y[own[1].to(y.device)])
        except DataError as error:  # its row numbers count within the class
            raise DataError(f"class {label}: {error}") from error
    return values
