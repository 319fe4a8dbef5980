"""Per sample: keep, or drop with a reason. Every threshold is a quantile of the same signal on held-out real images.

The thresholds are conformal (Vovk et al. 2005, chapter 2; Bates et al. 2023, "Testing for outliers with conformal
p-values"): a new real image exceeds the ceil((n + 1)(1 - alpha))-th of n held-out ones with probability at most alpha.
The alphas of all families add up to `GateConfig.false_rejection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from synthgen.config.schema import GateConfig
from synthgen.errors import DataError
from synthgen.metrics.features import check_finite
from synthgen.metrics.lowlevel import lowlevel
from synthgen.metrics.neighbours import blur, duplicate_groups, expected_nearest, knn, nearest_shifted, shifted_distances
from synthgen.randomness import stream
from synthgen.shapes import Bool, Float, Int64, UInt8
from synthgen.types import UNLABELLED, FeatureSet

Signals = dict[str, np.ndarray]
"""Name of a family -> one figure an image, float64."""

INVISIBLE = 0.01
"""Noise added to every low-level statistic: 2.5 grey levels. Without it a background of 2/255 in place of the digits' clean
0 drops 15% of real images, with it 1%."""

MIN_REFERENCE = 20
"""Fewest reference images that thresholds can be calibrated on."""


class Family(NamedTuple):
    """One kind of evidence: the reason it drops with, which end is bad, its share of the false-rejection budget."""

    reason: str
    bad: Literal["high", "low"]
    budget: float


FAMILIES: dict[str, Family] = {
    "support": Family("off support", "high", 0.15),
    "low_level": Family("low-level", "high", 0.2),
    "label": Family("label", "high", 0.4),  # the fewest real images calibrate it, so it needs the largest share
    "copy": Family("copy", "low", 0.15),
    "duplicate": Family("duplicate", "low", 0.1),
}


@dataclass(frozen=True)
class Evidence:
    """A set of images with everything the gate looks at; labels and keys stand in `features`.

    Attributes:
        images: uint8, shape (n, c, h, w).
        features: of these images, under the gate's extractor.
        probabilities: of each class by the judge, shape (n, k), rows sum to 1. For train from the networks that were
            blind to the image (out of fold), for every other set the mean of all networks.
    """

    images: UInt8[np.ndarray, "n c h w"]
    features: FeatureSet
    probabilities: Float[np.ndarray, "n k"]

    def __post_init__(self) -> None:
        n = len(self.images)
        if not n == len(self.features) == len(self.probabilities):
            found = f"{len(self.features)} rows of features and {len(self.probabilities)} of probabilities"
            raise DataError(f"evidence of {n} images comes with {found}")
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"evidence holds uint8 images of shape (n, c, h, w), found {self.images.dtype} {self.images.shape}")
        check_finite(torch.as_tensor(self.features.features), "gate: features")
        check_finite(torch.as_tensor(self.probabilities), "gate: class probabilities")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return self.features.labels


@dataclass(frozen=True)
class Real:
    """The real images, each set in its one role.

    Attributes:
        train: labelled; what the generator saw. Copies are looked for here.
        val: labelled, held out from the generator and from every network.
        reference: held out as well; labels may be `UNLABELLED`. Candidates are compared with it.
        blurred: features of `blurred(reference.images)`, in the same order: what a known defect costs.
    """

    train: Evidence
    val: Evidence
    reference: Evidence
    blurred: FeatureSet


@dataclass(frozen=True)
class Calibration:
    """Thresholds and the real signals that they come from.

    Attributes:
        null: family -> its signal on real images that the generator didn't see (for `label`: that the judge didn't see).
        thresholds: family -> the last value that passes.
        alphas: family -> expected share of real images it drops.
        real_dropped: share of held-out real images that are dropped in all; an upper bound, as `label` is added on top.
    """

    null: Signals
    thresholds: dict[str, float]
    alphas: dict[str, float]
    real_dropped: float


@dataclass(frozen=True)
class Sifted:
    """The candidates after the per-sample checks.

    Attributes:
        signals: family -> figure of each candidate; what the export writes beside a sample.
        calibration: of the thresholds.
        kept: mask over the candidates.
        reasons: key -> why it was dropped, for those that were.
    """

    signals: Signals
    calibration: Calibration
    kept: Bool[np.ndarray, " n"]
    reasons: dict[str, tuple[str, ...]]


def blurred(images: UInt8[np.ndarray, "n c h w"]) -> UInt8[np.ndarray, "n c h w"]:
    """The defect that FID is calibrated with: the images under a 3x3 binomial filter, as uint8."""
    return blur(images).mul_(255).round_().to(torch.uint8).numpy()


def sift(candidates: Evidence, real: Real, config: GateConfig) -> Sifted:
    """All per-sample checks: `signals`, `calibrate` and `keep` in one call.

    Raises:
        DataError: other shapes or extractors, candidates without labels, too few held-out real images.
    """
    found = signals(candidates, real, config)
    calibration = calibrate(real, config, len(candidates))
    kept, reasons = keep(candidates, found, calibration)
    return Sifted(found, calibration, kept, reasons)


def signals(candidates: Evidence, real: Real, config: GateConfig) -> Signals:
    """Each family's figure for each candidate, and `expected_nearest`, the unit that duplicates are measured in.

    support: distance to the k-th nearest reference image in features. low_level: Mahalanobis distance of seven pixel
    statistics from the reference's. label: -ln p(label) by the judge. copy: distance to the nearest training image,
    over that expected to the nearest of equally many held-out images, both under shifts and mirroring. duplicate:
    distance to the nearest other candidate over `expected_nearest`, that to the nearest of so many held-out images.
    """
    _check(candidates, real)
    reference = real.reference
    size = _draw_size(real)
    scale = _expected_nearest(candidates.images, reference.images, size)
    return {
        "support": _support(candidates, reference, config.neighbours),
        "low_level": _mahalanobis(candidates.images, reference.images),
        "label": _doubt(candidates),
        "copy": _copy_ratio(candidates.images, real, size, config),
        "duplicate": _ratio(_nearest_other(candidates.images), scale),
        "expected_nearest": scale,
    }


def calibrate(real: Real, config: GateConfig, num_candidates: int) -> Calibration:
    """Thresholds at which held-out real images are dropped at most `config.false_rejection` of the time, in all.

    A reference image is judged as a candidate would be, itself left out. `num_candidates` matters for duplicates: among
    more images more pairs are close by chance. A family whose share of the budget is below 1/(n + 1) for its n real
    images takes their worst value as threshold; `alphas` then says what that costs.

    Raises:
        DataError: fewer than `MIN_REFERENCE` reference images.
    """
    null = _null(real, config)
    thresholds, alphas = {}, {}
    for name, family in FAMILIES.items():
        alpha = family.budget * config.false_rejection
        if name == "duplicate":
            thresholds[name], alphas[name] = _duplicate_threshold(null[name], alpha, num_candidates)
        else:
            thresholds[name], alphas[name] = conformal_threshold(null[name], alpha, family.bad)
    for name in ("copy", "duplicate"):
        thresholds[name] = min(thresholds[name], config.copy_ratio)
    return Calibration(null, thresholds, alphas, _real_dropped(null, thresholds, alphas["duplicate"]))


def keep(
    candidates: Evidence, found: Signals, calibration: Calibration
) -> tuple[Bool[np.ndarray, " n"], dict[str, tuple[str, ...]]]:
    """Mask of the candidates that pass, and key -> reasons of those that don't.

    Of near-duplicates the one with the best support among those that pass all other checks is kept. A constant image
    is dropped as "low-level" whatever the thresholds.
    """
    bad = {name: is_bad(name, found[name], calibration.thresholds[name]) for name in FAMILIES if name != "duplicate"}
    bad["low_level"] |= np.ptp(candidates.images.reshape(len(candidates), -1), axis=1) == 0
    passes = ~np.any(list(bad.values()), axis=0)
    best_first = np.lexsort((np.arange(len(candidates)), found["support"], ~passes))
    reach = calibration.thresholds["duplicate"] * found["expected_nearest"]
    leaders = duplicate_groups(candidates.images, torch.from_numpy(reach), torch.from_numpy(best_first)).numpy()
    bad["duplicate"] = leaders != np.arange(len(candidates))
    kept = passes & ~bad["duplicate"]
    reasons = {
        candidates.features.keys[row]: tuple(FAMILIES[name].reason for name in FAMILIES if bad[name][row])
        for row in np.flatnonzero(~kept)
    }
    return kept, reasons


def is_bad(family: str, values: Float[np.ndarray, " n"], threshold: float) -> Bool[np.ndarray, " n"]:
    """Which values a family drops at this threshold; a distance of 0 (an exact copy) is bad whatever it is."""
    if FAMILIES[family].bad == "high":
        return ~(values <= threshold)
    return ~(values >= threshold) | (values == 0)


def conformal_threshold(null: Float[np.ndarray, " n"], alpha: float, bad: Literal["high", "low"]) -> tuple[float, float]:
    """The value that a new draw from the null is beyond with probability at most alpha, and that probability.

    With too few values for alpha (n + 1 < 1 / alpha) it is the worst of them, beyond which is one in n + 1.

    >>> conformal_threshold(np.arange(99.0), 0.05, "high")
    (94.0, 0.05)
    """
    n = len(null)
    allowed = math.floor((n + 1) * alpha + 1e-9)  # how many of the n may lie at or beyond
    allowed = max(1, allowed)
    ordered = np.sort(null)
    threshold = ordered[n - allowed] if bad == "high" else ordered[allowed - 1]
    return float(threshold), allowed / (n + 1)


def _real_dropped(null: Signals, thresholds: dict[str, float], duplicates: float) -> float:
    """Share of real images dropped: in all by support, pixels and copy, plus labels (known of others), plus `duplicates`.

    The one image that a threshold was taken from counts: as of a new image, it would be as likely beyond.
    """
    dropped = {name: is_bad(name, null[name], thresholds[name]) for name in FAMILIES}
    for name, bad in dropped.items():
        at = np.flatnonzero(null[name] == thresholds[name])
        bad[at] |= len(at) == 1
    together = dropped["support"] | dropped["low_level"] | dropped["copy"]
    return min(1.0, float(together.mean() + dropped["label"].mean() + duplicates))


def _duplicate_threshold(null: np.ndarray, alpha: float, num_candidates: int) -> tuple[float, float]:
    """The threshold for a set of `num_candidates`, from nearest distances inside sets of half the reference's size.

    The chance that an image has any neighbour nearer than t grows with the number of others; of a pair one is dropped.
    So the level is 2 alpha (n_null - 1) / (n - 1). Below one in n_null + 1 the tail is extrapolated: the chance falls as
    t^D, D being the dimension in which images vary; a low D = 4 is on the safe side.
    """
    others = max(len(null) // 2 - 1, 1)
    level = min(alpha, 2 * alpha * others / max(num_candidates - 1, 1))
    threshold, used = conformal_threshold(null, level, "low")
    if used > level:
        threshold *= (level / used) ** (1 / 4)
    return threshold, alpha


def _null(real: Real, config: GateConfig) -> Signals:
    """The signals of held-out real images: val as candidates are, reference images with themselves left out."""
    val, reference = real.val, real.reference
    size, k = _draw_size(real), config.neighbours
    return {
        "support": np.concatenate([_support(reference, reference, k, exclude_self=True), _support(val, reference, k)]),
        "low_level": np.concatenate(
            [_mahalanobis(reference.images, reference.images, exclude_self=True), _mahalanobis(val.images, reference.images)]
        ),
        "label": _null_doubt(real, config),
        "copy": np.concatenate(
            [_copy_ratio(reference.images, real, size, config, exclude_self=True), _copy_ratio(val.images, real, size, config)]
        ),
        "duplicate": _null_duplicate(reference.images, size),
    }


def _draw_size(real: Real) -> int:
    """How many held-out images stand against the training images: as many, or half the reference if that is fewer."""
    return max(1, min(len(real.train), len(real.reference) // 2))


def _support(queries: Evidence, reference: Evidence, k: int, exclude_self: bool = False) -> Float[np.ndarray, " n"]:
    return knn(queries.features.features, reference.features.features, k, exclude_self)[0][:, -1].numpy()


def _doubt(evidence: Evidence) -> Float[np.ndarray, " n"]:
    """-ln p(label): orders as 1 - p does, and still tells a p of 1e-4 from 1e-9. Meaningless where the label is unknown."""
    likelihood = evidence.probabilities[np.arange(len(evidence)), evidence.labels].astype(np.float64)
    return -np.log(np.clip(likelihood, 1e-30, 1))


def _null_doubt(real: Real, config: GateConfig) -> Float[np.ndarray, " n"]:
    """Doubt of the labels of val and of the reference where it has some; of train's only where these are too few.

    An image of train is judged by one network, a candidate by the mean of all, which is never as sure of a wrong class:
    calibrated on both, the gate on digits (50 val images) let 10 to 61% of wrong labels pass, on val alone 2 to 9%.
    """
    known = [_doubt(evidence)[evidence.labels != UNLABELLED] for evidence in (real.val, real.reference)]
    null = np.concatenate(known)
    enough = (len(null) + 1) * FAMILIES["label"].budget * config.false_rejection >= 1
    return null if enough else np.concatenate([null, _doubt(real.train)])


def _mahalanobis(
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


def _copy_ratio(
    images: UInt8[np.ndarray, "n c h w"], real: Real, size: int, config: GateConfig, exclude_self: bool = False
) -> Float[np.ndarray, " n"]:
    """Distance to the nearest training image over that expected to the nearest of `size` reference images."""
    search = config.search_px, config.search_flip
    nearest, _ = nearest_shifted(images, real.train.images, *search)
    return _ratio(nearest.double().numpy(), _expected_nearest(images, real.reference.images, size, *search, exclude_self))


def _expected_nearest(
    images: UInt8[np.ndarray, "n c h w"],
    base: UInt8[np.ndarray, "m c h w"],
    size: int,
    search_px: int = 0,
    flip: bool = False,
    exclude_self: bool = False,
) -> Float[np.ndarray, " n"]:
    """Distance to the nearest of `size` images drawn from `base`, itself left out with `exclude_self`."""
    expected = []
    for rows, tile in shifted_distances(images, base, search_px, flip):
        if exclude_self:  # the farthest of m - 1 others is never the nearest of a draw, so the row goes to the end
            tile.diagonal(offset=rows.start).fill_(torch.inf)
            tile = tile.topk(tile.shape[1] - 1, dim=1, largest=False, sorted=False).values
        expected.append(expected_nearest(tile, size).numpy())
    return np.concatenate(expected)


def _nearest_other(images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, " n"]:
    """Distance to the nearest other image of the set, without shifts; infinite in a set of one."""
    nearest = []
    for rows, tile in shifted_distances(images, images, 0, False):
        tile.diagonal(offset=rows.start).fill_(torch.inf)
        nearest.append(tile.min(dim=1).values.double().numpy())
    return np.concatenate(nearest)


def _null_duplicate(images: UInt8[np.ndarray, "n c h w"], size: int) -> Float[np.ndarray, " n"]:
    """Duplicate signal of the images of either half of the set, with the other half as held-out images."""
    order = stream(0, "halves for duplicates").permutation(len(images))
    halves = images[order[: len(order) // 2]], images[order[len(order) // 2 :]]
    pairs = [(halves[0], halves[1]), (halves[1], halves[0])]
    return np.concatenate(
        [_ratio(_nearest_other(own), _expected_nearest(own, other, min(size, len(other)))) for own, other in pairs]
    )


def _ratio(nearest: Float[np.ndarray, " n"], expected: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """nearest / expected; 0 where nearest is 0, whatever is expected."""
    return np.where(nearest == 0, 0.0, nearest / np.maximum(expected, 1e-12))


def _check(candidates: Evidence, real: Real) -> None:
    """Refuses what can't be compared, before anything is computed.

    Raises:
        DataError: no candidates, other shapes, another extractor, labels that are no classes,
            repeated keys, too few held-out images.
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
    num_classes = candidates.probabilities.shape[1]
    for name in ("candidates", "train", "val"):
        labels = everything[name].labels
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            raise DataError(
                f"gate: {name} have labels from {labels.min()} to {labels.max()}, the judge knows 0 to {num_classes - 1}"
            )
    if len(set(candidates.features.keys)) < len(candidates):
        raise DataError("gate: two candidates have the same key")
    if len(real.blurred) != len(real.reference):
        raise DataError(f"gate: {len(real.blurred)} blurred images for {len(real.reference)} reference images")
