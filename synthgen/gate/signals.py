"""One figure an image and family of evidence, for candidates and for the held-out real images that thresholds come from."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from synthgen.config.schema import GateConfig
from synthgen.errors import DataError
from synthgen.gate.evidence import Evidence, Real, check
from synthgen.metrics.copies import copy_ratio, expected_distance, feature_copy_ratio, nearest_other
from synthgen.metrics.lowlevel import lowlevel
from synthgen.metrics.neighbours import knn
from synthgen.randomness import stream
from synthgen.shapes import Bool, Float, Int64, UInt8
from synthgen.types import UNLABELLED

Signals = dict[str, np.ndarray]
"""Name of a family -> one figure an image, float64."""

INVISIBLE = 0.01
"""Noise added to every low-level statistic: 2.5 grey levels. Without it a background of 2/255 in place of the digits' clean
0 drops 15% of real images, with it 1%."""


class Family(NamedTuple):
    """One kind of evidence: the reason it drops with, which end is bad, its share of the false-rejection budget."""

    reason: str
    bad: Literal["high", "low"]
    budget: float


FAMILIES: dict[str, Family] = {
    "support": Family("off support", "high", 0.1),
    "low_level": Family("low-level", "high", 0.15),
    "defect": Family("defect", "high", 0.2),
    "label": Family("label", "high", 0.3),  # the fewest real images calibrate it, so it needs the largest share
    "copy": Family("copy", "low", 0.1),
    "feature_copy": Family("feature copy", "low", 0.05),
    "duplicate": Family("duplicate", "low", 0.1),
}

COPY_REASONS = (FAMILIES["copy"].reason, FAMILIES["feature_copy"].reason)


class Found(NamedTuple):
    """The candidates' signals, and whom they are copies of.

    Attributes:
        signals: of each family that there is evidence for.
        expected: distance expected to the nearest of so many held-out images: the unit of `duplicate`.
        nearest: row of the training image that each candidate is nearest to.
        distance: to it, see `copies.CopyMatch`.
    """

    signals: Signals
    expected: Float[np.ndarray, " n"]
    nearest: Int64[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]


def find(candidates: Evidence, real: Real, config: GateConfig, device: str = "cpu") -> Found:
    """Each family's figure for each candidate.

    support: distance to the k-th nearest reference image in features, of the candidate's own class where the reference
    is labelled. low_level: Mahalanobis distance of seven pixel statistics from the reference's. defect: the detector's
    worst margin. label: -ln p(label) by the judge. copy: whitened distance to the nearest training image over that expected to
    the nearest of equally many held-out images, under shifts and mirroring. feature_copy: the same in features.
    duplicate: distance to the nearest other candidate over that to the nearest of so many held-out images.

    Raises:
        DataError: other shapes or extractors, candidates without labels, too few held-out real images.
    """
    check(candidates, real)
    reference, size = real.reference, draw_size(real)
    match = copy_ratio(
        candidates.images, real.copied.images, reference.images, size, config.search_px, config.search_flip, device=device
    )
    expected = expected_distance(candidates.images, reference.images, size).numpy()
    signals = {
        "support": support(candidates, reference, config.neighbours),
        "low_level": mahalanobis(candidates.images, reference.images),
        "label": doubt(candidates),
        "copy": match.ratio.double().numpy(),
        "feature_copy": _feature_copy(candidates, real, size),
        "duplicate": ratio(nearest_other(candidates.images).numpy(), expected),
    }
    if candidates.margins is not None:
        signals["defect"] = defect_scores(candidates.margins, _null_margins(real)).astype(np.float64)
    return Found(
        {name: signals[name] for name in FAMILIES if name in signals}, expected, match.nearest.numpy(), match.distance.numpy()
    )


def null(real: Real, config: GateConfig, device: str = "cpu") -> Signals:
    """The signals of held-out real images: val as candidates are, reference images with themselves left out."""
    val, reference = real.val, real.reference
    size, k = draw_size(real), config.neighbours
    search = config.search_px, config.search_flip

    def copy(images: UInt8[np.ndarray, "n c h w"], exclude_self: bool) -> Float[np.ndarray, " n"]:
        return (
            copy_ratio(images, real.copied.images, reference.images, size, *search, exclude_self=exclude_self, device=device)
            .ratio.double()
            .numpy()
        )

    signals = {
        "support": [support(reference, reference, k, exclude_self=True), support(val, reference, k)],
        "low_level": [
            mahalanobis(reference.images, reference.images, exclude_self=True),
            mahalanobis(val.images, reference.images),
        ],
        "label": [_null_doubt(real, config)],
        "copy": [copy(reference.images, True), *([copy(val.images, False)] if len(val) else [])],
        "feature_copy": [
            _feature_copy(reference, real, size, exclude_self=True),
            *([_feature_copy(val, real, size)] if len(val) else []),
        ],
        "duplicate": [_null_duplicate(reference.images, size)],
    }
    if reference.margins is not None:
        margins = _null_margins(real)
        signals["defect"] = [defect_scores(margins, margins).astype(np.float64)]
    return {name: np.concatenate(signals[name]) for name in FAMILIES if name in signals}


def is_bad(family: str, values: Float[np.ndarray, " n"], threshold: float) -> Bool[np.ndarray, " n"]:
    """Which values a family drops at this threshold; a distance of 0 (an exact copy) is bad whatever it is."""
    if FAMILIES[family].bad == "high":
        return ~(values <= threshold)
    return ~(values >= threshold) | (values == 0)


def draw_size(real: Real) -> int:
    """How many held-out images stand against the training images: as many, or half the reference if that is fewer."""
    return max(1, min(len(real.copied), len(real.reference) // 2))


def support(queries: Evidence, reference: Evidence, k: int, exclude_self: bool = False) -> Float[np.ndarray, " n"]:
    """Distance to the k-th nearest reference image: of the query's class where the reference has 2 k labelled ones of each.

    Within the class it sees a wrong label too, which the distance to any image doesn't (AUROC on MNIST .51 against 1.0).
    """
    features, base, labels = queries.features.features, reference.features.features, reference.labels
    num_classes = reference.probabilities.shape[1]
    if not (reference.labelled and np.bincount(labels, minlength=num_classes).min() >= 2 * k and queries.labelled):
        return knn(features, base, k, exclude_self)[0][:, -1].numpy()
    distance = np.empty(len(queries))
    for label in np.unique(queries.labels):
        rows = queries.labels == label
        distance[rows] = knn(features[rows], base[labels == label], k, exclude_self)[0][:, -1].numpy()
    return distance


def defect_scores(found: Float[np.ndarray, "n k"], null: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " n"]:
    """The worst kind's margin, each in units of how far real images' margins reach above their median; higher is worse.

    Kinds that real images often look like (a photograph out of focus) need a larger margin than others, so that they don't
    use up the false alarms of all: on digits recall of 50/50 blends at 1% false alarms rose from 8% to 61%.
    Where `found` is `null` itself the scale is fitted to the very images that calibrate: with 200 of them new real images
    were dropped 1.2% of the time at 1% and 5.5% at 5% (means of 300 draws on digits).

    Args:
        found: of the images asked about.
        null: of real images that the network is blind to; the scores of these calibrate the threshold.

    Raises:
        DataError: fewer than 20 rows in `null`.
    """
    if len(null) < 20:
        raise DataError(f"defects: {len(null)} real images are too few to scale the margins by, at least 20 are needed")
    middle, high = np.median(null, axis=0), np.quantile(null, 0.95, axis=0)
    return ((found - middle) / np.maximum(high - middle, 1e-6)).max(axis=1).astype(np.float32)


def doubt(evidence: Evidence) -> Float[np.ndarray, " n"]:
    """-ln p(label): orders as 1 - p does, and still tells a p of 1e-4 from 1e-9. Meaningless where the label is unknown."""
    likelihood = evidence.probabilities[np.arange(len(evidence)), evidence.labels].astype(np.float64)
    return -np.log(np.clip(likelihood, 1e-30, 1))


def _null_margins(real: Real) -> Float[np.ndarray, "m k"]:
    """Margins of the reference and of val, in the order of `null`."""
    assert real.reference.margins is not None
    assert real.val.margins is not None
    return np.concatenate([real.reference.margins, real.val.margins])


def _null_doubt(real: Real, config: GateConfig) -> Float[np.ndarray, " n"]:
    """Doubt of the labels of val and of the reference where it has some; of train's only where these are too few.

    An image of train is judged by one network, a candidate by the mean of all, which is never as sure of a wrong class:
    calibrated on both, the gate on digits (50 val images) let 10 to 61% of wrong labels pass, on val alone 2 to 9%.
    """
    known = np.concatenate([doubt(evidence)[evidence.labels != UNLABELLED] for evidence in (real.val, real.reference)])
    enough = (len(known) + 1) * FAMILIES["label"].budget * config.false_rejection >= 1
    return known if enough else np.concatenate([known, doubt(real.train)])


def mahalanobis(
    images: UInt8[np.ndarray, "n c h w"], reference: UInt8[np.ndarray, "m c h w"], exclude_self: bool = False
) -> Float[np.ndarray, " n"]:
    """Squared Mahalanobis distance of the low-level statistics from the reference's mean, in its covariance.

    With `exclude_self` the images are the reference, and each is left out of mean and covariance (in closed form:
    removing a point is a rank-one change, Sherman & Morrison 1950).
    """
    x, base = lowlevel(images).numpy(), lowlevel(reference).numpy()
    n, mean = len(base), base.mean(axis=0)
    x, base = x - mean, base - mean
    precision = np.linalg.inv(base.T @ base / (n - 1) + INVISIBLE**2 * np.eye(base.shape[1]))
    distance = np.einsum("nd,de,ne->n", x, precision, x)
    if not exclude_self:
        return distance
    leverage = distance / (n - 1)
    return (n - 2) * leverage / np.clip(1 - leverage * n / (n - 1), 1e-6, None) * (n / (n - 1)) ** 2


def _feature_copy(evidence: Evidence, real: Real, size: int, exclude_self: bool = False) -> Float[np.ndarray, " n"]:
    own, train, held_out = (e.features.features for e in (evidence, real.copied, real.reference))
    return feature_copy_ratio(own, train, held_out, size, exclude_self).ratio.double().numpy()


def _null_duplicate(images: UInt8[np.ndarray, "n c h w"], size: int) -> Float[np.ndarray, " n"]:
    """Duplicate signal of the images of either half of the set, with the other half as held-out images."""
    order = stream(0, "halves for duplicates").permutation(len(images))
    halves = images[order[: len(order) // 2]], images[order[len(order) // 2 :]]
    pairs = [(halves[0], halves[1]), (halves[1], halves[0])]
    return np.concatenate(
        [ratio(nearest_other(own).numpy(), expected_distance(own, other, min(size, len(other))).numpy()) for own, other in pairs]
    )


def ratio(nearest: Float[np.ndarray, " n"], expected: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """nearest / expected; 0 where nearest is 0, whatever is expected."""
    return np.where(nearest == 0, 0.0, nearest / np.maximum(expected, 1e-12))
