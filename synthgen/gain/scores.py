"""How well predicted class probabilities fit labels: accuracy, loss, macro-F1, calibration, the worst class and group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synthgen.errors import DataError
from synthgen.shapes import Float, Int64
from synthgen.types import Batch, Scores

CLIP = 1e-7
"""Smallest probability of the true class that the loss believes: one sure mistake costs at most 16.1 nats."""

BINS = 15
"""Of the calibration error (Guo et al. 2017, section 5)."""


def score(predicted: np.ndarray, images: Batch) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats, nothing else: what val is asked for again and again."""
    own = predicted[np.arange(len(images)), images.labels]
    return float((predicted.argmax(1) == images.labels).mean()), float(-np.log(np.clip(own, CLIP, 1)).mean())


def scores(
    probabilities: Float[np.ndarray, "n k"],
    labels: Int64[np.ndarray, " n"],
    groups: Sequence[str | None] | np.ndarray | None = None,
) -> Scores:
    """Accuracy, loss, macro-F1, ECE, recalls, and the worst class and group of a set of predictions; see `Scores`.

    Args:
        probabilities: of each class, rows sum to 1.
        labels: 0 to k - 1.
        groups: of each image, None for an image of none.

    Raises:
        DataError: no images, a label that isn't one of the classes, a probability that isn't finite, or other lengths.
    """
    _check(probabilities, labels, groups)
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    right = predicted == labels
    own = np.clip(probabilities[np.arange(len(labels)), labels].astype(np.float64), CLIP, 1.0)
    num_true = np.bincount(labels, minlength=classes)
    num_right = np.bincount(labels[right], minlength=classes)
    num_predicted = np.bincount(predicted, minlength=classes)
    has = num_true > 0
    # F1 = 2 TP / (2 TP + FP + FN) = 2 TP / (predicted + true)
    f1 = 2 * num_right[has] / (num_predicted[has] + num_true[has])
    recalls = tuple(float(r / t) if t else None for r, t in zip(num_right, num_true, strict=True))
    return Scores(
        accuracy=float(right.mean()),
        loss=float(-np.log(own).mean()),
        macro_f1=float(f1.mean()),
        ece=calibration_error(probabilities.max(1).astype(np.float64), right),
        worst_class=min(r for r in recalls if r is not None),
        worst_group=_worst_group(right, groups),
        recalls=recalls,
    )


def calibration_error(confidences: Float[np.ndarray, " n"], right: np.ndarray) -> float:
    """Expected calibration error, sum_b |B_b| / n |accuracy(B_b) - confidence(B_b)| (Guo et al. 2017, eq. 3).

    The bins are ((b - 1) / 15, b / 15], as there; torchmetrics puts their ends the other way round and gives a
    confidence of exactly 1 a bin of its own.
    """
    # the ends as whole numbers over 15: those of `linspace` differ from them in the last bit
    bins = np.digitize(confidences, np.arange(1, BINS) / BINS, right=True)
    gaps = np.bincount(bins, right - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _worst_group(right: np.ndarray, groups: Sequence[str | None] | np.ndarray | None) -> float | None:
    if groups is None:
        return None
    names = sorted({group for group in groups if group is not None})
    place = {name: i for i, name in enumerate(names)}
    if not names:
        return None
    kept = np.array([group is not None for group in groups])
    of = np.array([place[group] for group in groups if group is not None])
    return float((np.bincount(of, right[kept]) / np.bincount(of)).min())


def _check(
    probabilities: Float[np.ndarray, "n k"], labels: Int64[np.ndarray, " m"], groups: Sequence[str | None] | np.ndarray | None
) -> None:
    if len(labels) == 0:
        raise DataError("no images to score")
    if len(probabilities) != len(labels) or (groups is not None and len(groups) != len(labels)):
        of_groups = "" if groups is None else f" and {len(groups)} groups"
        raise DataError(f"{len(probabilities)} predictions, {len(labels)} labels{of_groups}: they don't belong together")
    outside = (labels < 0) | (labels >= probabilities.shape[1])
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {len(labels)} images have no label among the {probabilities.shape[1]} classes "
            f"(one has {labels[outside][0]}); score labelled images only"
        )
    if not np.isfinite(probabilities).all():
        raise DataError(
            "class probabilities that aren't finite: did the training diverge? Lower classifier.lr, or look for broken images "
            "with `synthgen audit`"
        )
