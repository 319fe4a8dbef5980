"""What the gate looks at: images with their features, the judges' probabilities and the detector's scores, by role."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from synthgen.errors import DataError
from synthgen.metrics.features import check_finite
from synthgen.shapes import Float, Int64, UInt8
from synthgen.types import UNLABELLED, FeatureSet

MIN_REFERENCE = 20
"""Fewest reference images that thresholds can be calibrated on."""


@dataclass(frozen=True)
class Evidence:
    """A set of images with everything the gate looks at; labels and keys stand in `features`.

    Attributes:
        images: uint8, shape (n, c, h, w).
        features: of these images, under the gate's extractor.
        probabilities: of each class by the judge, shape (n, k), rows sum to 1. For train from the networks that were
            blind to the image (out of fold), for every other set the mean of all networks.
        margins: by the detector of planted defects, ln p(kind) - ln p(sound) of each kind. Each image is judged by one
            network: a real one by that which was blind to it, any other by either. None where there is no detector.
    """

    images: UInt8[np.ndarray, "n c h w"]
    features: FeatureSet
    probabilities: Float[np.ndarray, "n k"]
    margins: Float[np.ndarray, "n d"] | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if not n == len(self.features) == len(self.probabilities):
            found = f"{len(self.features)} rows of features and {len(self.probabilities)} of probabilities"
            raise DataError(f"evidence of {n} images comes with {found}")
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"evidence holds uint8 images of shape (n, c, h, w), found {self.images.dtype} {self.images.shape}")
        if self.margins is not None and len(self.margins) != n:
            raise DataError(f"evidence of {n} images comes with {len(self.margins)} rows of the defect detector's margins")
        check_finite(torch.as_tensor(self.features.features), "gate: features")
        check_finite(torch.as_tensor(self.probabilities), "gate: class probabilities")
        if self.margins is not None:
            check_finite(torch.as_tensor(self.margins), "gate: margins of the defect detector")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return self.features.labels

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels != UNLABELLED).all())


@dataclass(frozen=True)
class Real:
    """The real images, each set in its one role.

    Attributes:
        train: labelled; what the generator saw.
        val: labelled, held out from the generator, the extractor and the judges.
        reference: held out as well; labels may be `UNLABELLED`. Candidates are compared with it.
        blurred: features of the reference images under a 3x3 binomial filter, in the same order: what a known defect costs.
        seen: train and whatever else the generator saw, where it saw more.
    """

    train: Evidence
    val: Evidence
    reference: Evidence
    blurred: FeatureSet
    seen: Evidence | None = None

    @property
    def copied(self) -> Evidence:
        """Where copies are looked for: all that the generator saw."""
        return self.train if self.seen is None else self.seen


def check(candidates: Evidence, real: Real) -> None:
    """Refuses what can't be compared, before anything is computed.

    Raises:
        DataError: no candidates, other shapes, another extractor, labels that are no classes,
            repeated keys, too few held-out images, features that are the same for all of them.
    """
    everything = {"candidates": candidates, "train": real.train, "val": real.val, "reference": real.reference}
    if not len(candidates):
        raise DataError("gate: there are no candidates")
    if len(real.reference) < MIN_REFERENCE:
        raise DataError(f"gate: {len(real.reference)} reference images are too few, at least {MIN_REFERENCE} are needed")
    for name, evidence in everything.items():
        if evidence.images.shape[1:] != candidates.images.shape[1:]:
            raise DataError(f"gate: {name} are {evidence.images.shape[1:]} images, candidates {candidates.images.shape[1:]}")
        if evidence.features.extractor != candidates.features.extractor:
            raise DataError(
                f"gate: features of {name} are by {evidence.features.extractor!r}, "
                f"those of the candidates by {candidates.features.extractor!r}"
            )
        if (evidence.margins is None) != (candidates.margins is None):
            raise DataError(f"gate: {name} and candidates must both have margins of the defect detector, or neither")
    num_classes = candidates.probabilities.shape[1]
    for name in ("candidates", "train", "val"):
        labels = everything[name].labels
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            raise DataError(
                f"gate: {name} have labels from {labels.min()} to {labels.max()}, the judge knows 0 to {num_classes - 1}"
            )
    if len(set(candidates.features.keys)) < len(candidates):
        raise DataError("gate: two candidates have the same key")
    if not np.ptp(real.reference.features.features, axis=0).any():
        raise DataError(
            f"gate: {real.reference.features.extractor!r} gives all {len(real.reference)} reference images the same features, so "
            "nothing can be compared; take another extractor, or other images"
        )
    if len(real.blurred) != len(real.reference):
        raise DataError(f"gate: {len(real.blurred)} blurred images for {len(real.reference)} reference images")
