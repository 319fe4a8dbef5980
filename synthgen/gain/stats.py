"""Paired differences between arms, with intervals that cover both the seed and the test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from synthgen.errors import DataError
from synthgen.randomness import stream
from synthgen.shapes import Bool, Float, UInt8
from synthgen.types import ClassGain, Interval

POWER_80 = 1.959964 + 0.841621
"""Standard errors that a true difference must measure to be found (two-sided 5%) with 80% power."""

RESAMPLES = 2000
"""Of the bootstrap: a 95% limit then moves by about 0.05 standard errors with the random numbers."""

LEVEL = 0.05
"""Of a test, two-sided."""


class _Test(NamedTuple):
    """Student's t over seeds and images: what `paired_interval` says, before its bootstrap."""

    mean: float
    low: float
    high: float
    p: float
    seed_variance: float


def paired_interval(
    arm: str, baseline: str, arm_correct: Float[np.ndarray, "s n"], baseline_correct: Float[np.ndarray, "s n"]
) -> Interval:
    """Mean difference in accuracy, in points, with 95% intervals: Student's t, which decides, and BCa beside it.

    Seeds and test images are both samples (of all runs, of all images), crossed: the variance of the mean is at most
    var_over_seeds / s + var_over_images / n (Owen 2007, "The pigeonhole bootstrap": the sum counts the interaction
    twice, so it errs on the wide side). Student's t with Satterthwaite's degrees of freedom.

    The bootstrap resamples seeds and images, each with replacement (Owen 2007), and is read by `bca_limits`. It sees
    skewness, but of few seeds its spread is short by sqrt((s - 1) / s) and it knows no t. An arm against itself at other
    seeds, simulated: 3-6% are significant by the t; by BCa as few where single images vary most, but 12% of 10 seeds and
    22% of 3 to 5 where whole seeds do.

    Without any variance both intervals are the difference itself, and p is 1 for no difference, 0 for one.

    Args:
        arm, baseline: their names.
        arm_correct, baseline_correct: 1 where the classifier of seed s is right on test image n, else 0.

    Raises:
        DataError: fewer than 2 seeds or 2 images, or arms of different shapes.

    Cost: 10 ms for 10 seeds and 900 images, 0.1 s for 10,000 images; the resamples are drawn once for each shape.
    """
    differences = _differences(arm_correct, baseline_correct)
    seeds, images = differences.shape
    if seeds < 2 or images < 2:
        raise DataError(f"{arm} against {baseline}: {seeds} seeds and {images} test images; an interval needs at least 2 of each")
    test = _t_test(differences)
    boot_low, boot_high = _bootstrap_limits(differences)
    needed = seeds_needed(test.mean, test.seed_variance, _images_alone(differences))
    effect = test.mean / math.sqrt(test.seed_variance) if test.seed_variance > 0 else None
    return Interval(
        arm, baseline, test.mean, test.low, test.high, seeds, needed, boot_low, boot_high, test.p, test.p, effect
    )  # fmt: skip


def _differences(arm_correct: Float[np.ndarray, "s n"], baseline_correct: Float[np.ndarray, "t m"]) -> Float[np.ndarray, "s n"]:
    """Right minus right: -1, 0 or 1, so that every sum over them is exact."""
    if arm_correct.shape != baseline_correct.shape:
        raise DataError(f"arms of {arm_correct.shape} and {baseline_correct.shape} seeds and test images can't be paired")
    return arm_correct.astype(np.float64) - baseline_correct


def _t_test(differences: Float[np.ndarray, "s n"]) -> _Test:
    seeds, images = differences.shape
    mean = 100.0 * float(differences.mean())
    seed_variance = float(differences.sum(1).var(ddof=1)) * (100.0 / images) ** 2
    by_seed, by_image = seed_variance / seeds, float(differences.sum(0).var(ddof=1)) * (100.0 / seeds) ** 2 / images
    variance = by_seed + by_image
    if variance == 0:
        return _Test(mean, mean, mean, float(mean == 0), 0.0)
    freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_image**2 / (images - 1))
    half = float(distributions.t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(variance)
    p = 2 * float(distributions.t.sf(abs(mean) / math.sqrt(variance), freedom))
    return _Test(mean, mean - half, mean + half, p, seed_variance)


def _images_alone(differences: Float[np.ndarray, "s n"]) -> float:
    """Variance of the mean, in points^2, that no number of seeds takes away: (MS_images - MS_interaction) / s / n, ANOVA."""
    seeds, images = differences.shape
    points = 100.0 * differences
    centred = points - points.mean(0) - points.mean(1, keepdims=True) + points.mean()
    interaction = float((centred**2).sum()) / max(1, (seeds - 1) * (images - 1))
    return max(0.0, float(points.mean(0).var(ddof=1)) - interaction / seeds) / images


# The bootstrap


def _bootstrap_limits(differences: Float[np.ndarray, "s n"]) -> tuple[float, float]:
    """95% limits of the mean difference, in points, over resampled seeds and images."""
    seeds, images = differences.shape
    of_seeds, of_images = _resamples(seeds, images)
    columns = np.ascontiguousarray(differences.T, dtype=np.float32)
    # (B, n) @ (n, s) gives each seed's sum over the drawn images: exact, since all are whole numbers below 2^24
    by_seed = np.concatenate([chunk.astype(np.float32) @ columns for chunk in np.array_split(of_images, _chunks(images))])
    resampled = (by_seed.astype(np.float64) * of_seeds).sum(1) * 100.0 / (seeds * images)
    mean = differences.sum() * 100.0 / (seeds * images)
    rows = 100.0 * (differences.sum(1) / images) - mean
    return bca_limits(resampled, float(mean), [rows, 100.0 * (differences.sum(0) / seeds) - mean])


def bca_limits(
    resampled: Float[np.ndarray, " b"], estimate: float, influences: Sequence[Float[np.ndarray, " _"]]
) -> tuple[float, float]:
    """95% limits of an estimate, bias-corrected and accelerated (Efron 1987; DiCiccio & Efron 1996, section 2).

    The acceleration is that of several samples (Davison & Hinkley 1997, section 5.3.2): with l_kj the influence of member
    j of sample k, a = (sum_k sum_j l_kj^3 / n_k^3) / 6 / (sum_k sum_j l_kj^2 / n_k^2)^1.5. Here the samples are the seeds
    and the images, and as the estimate is linear in each, the jackknife value (n_k - 1) (mean - mean without j) of a
    seed or an image is its own mean less the whole mean.

    Args:
        resampled: the estimate on each resample.
        estimate: on the data. Half of the resamples that equal it count as below it.
        influences: of the members of each sample, each with mean 0.
    """
    cubes = sum(float((x**3).sum()) / len(x) ** 3 for x in influences)
    squares = sum(float((x**2).sum()) / len(x) ** 2 for x in influences)
    if squares == 0:
        return estimate, estimate
    acceleration = cubes / 6 / squares**1.5
    below = float(np.mean(resampled < estimate) + np.mean(resampled == estimate) / 2)
    below = min(max(below, 0.5 / len(resampled)), 1 - 0.5 / len(resampled))
    bias = distributions.norm.ppf(below)
    shifted = bias + distributions.norm.ppf([LEVEL / 2, 1 - LEVEL / 2])
    # |a| <= 1/6 and |shifted| < 6 for up to 10,000 resamples: the denominator is positive
    levels = distributions.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(resampled, levels)
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(seeds: int, images: int) -> tuple[UInt8[np.ndarray, "b s"], UInt8[np.ndarray, "b n"]]:
    """How often each seed and each image is in each resample: the same for all arms, which are compared on one test set."""
    rng = stream(0, "gain/bootstrap")
    return bootstrap_counts(rng, seeds, RESAMPLES), bootstrap_counts(rng, images, RESAMPLES)


def bootstrap_counts(rng: np.random.Generator, size: int, resamples: int) -> UInt8[np.ndarray, "b n"]:
    """How often each of `size` members is in each resample of as many, drawn with replacement: multinomial, rows sum to size.

    By counting drawn indices, 10 times as fast as `Generator.multinomial`; read only, one byte each.
    """
    parts = []
    for rows in np.array_split(np.arange(resamples), _chunks(size)):
        drawn = rng.integers(size, size=(len(rows), size)) + size * np.arange(len(rows))[:, None]
        parts.append(np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.uint8))
    counts = np.concatenate(parts)
    counts.flags.writeable = False
    return counts


def _chunks(size: int) -> int:
    """Parts of the resamples, of about 2 million numbers each."""
    return min(RESAMPLES, 1 + size * RESAMPLES // 2**21)


# Many comparisons


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values of several tests, step-down (Holm 1979): those below .05 hold with a family-wise error of 5%.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for done, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - done) * p[place]))
        adjusted[place] = largest
    return adjusted


def corrected(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """The same intervals with `p_holm`, Holm's correction over all arms that are compared with the same baseline."""
    found = list(intervals)
    for baseline in {i.baseline for i in intervals}:
        family = [place for place, i in enumerate(intervals) if i.baseline == baseline]
        for place, p in zip(family, holm([intervals[i].p for i in family]), strict=True):
            found[place] = replace(intervals[place], p_holm=p)
    return tuple(found)


def class_gains(
    classes: Mapping[str, Bool[np.ndarray, " n"]],
    groups: Mapping[str, Bool[np.ndarray, " n"]],
    arm_correct: Float[np.ndarray, "s n"],
    baseline_correct: Float[np.ndarray, "s n"],
) -> tuple[ClassGain, ...]:
    """What each class and each group gains or loses: paired t intervals (see `paired_interval`), Holm over all of them.

    "Harmed" also needs enough images: of m images on which the arms differ at all, no sign test can have a p below
    2^(1 - m), and neither has this one, however small the spread of so few happens to be.

    Args:
        classes, groups: name -> which test images are of it, in the order of the result. One without an image has no
            recall and is left out; one with a single image gets the whole range of -100 to 100 and no test.
        arm_correct, baseline_correct: 1 where the classifier of seed s is right on test image n, else 0.

    Raises:
        DataError: fewer than 2 seeds, or arms of different shapes.
    """
    differences = _differences(arm_correct, baseline_correct)
    if len(differences) < 2:
        raise DataError(f"{len(differences)} seeds; the gain of a class needs at least 2")
    named = [("class", *item) for item in classes.items()] + [("group", *item) for item in groups.items()]
    found: list[ClassGain] = []
    tested: list[tuple[int, float]] = []
    for kind, name, mask in named:
        num_test = int(mask.sum())
        if num_test == 0:
            continue
        mean = 100.0 * float(differences[:, mask].mean())
        low, high = -100.0, 100.0
        if num_test > 1:
            test = _t_test(differences[:, mask])
            low, high = max(-100.0, test.low), min(100.0, test.high)
            differing = int((differences[:, mask] != 0).any(0).sum())
            tested.append((len(found), max(test.p, min(1.0, 2.0 ** (1 - differing)))))
        recalls = float(baseline_correct[:, mask].mean()), float(arm_correct[:, mask].mean())
        found.append(ClassGain(name, kind, num_test, *recalls, mean, low, high, False))  # type: ignore[arg-type]
    for (place, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        found[place] = replace(found[place], harmed=p < LEVEL and found[place].difference < 0)
    return tuple(found)


# Seeds


def seeds_needed(difference: float, seed_variance: float, image_variance: float) -> int | None:
    """Seeds at which a true `difference` would be found with 80% power; None if the test set is too small for any number."""
    room = (difference / POWER_80) ** 2 - image_variance
    return max(2, math.ceil(seed_variance / room)) if room > 0 else None


def mean_interval(values: Float[np.ndarray, " s"]) -> tuple[float, float, float]:
    """Mean and 95% t interval over seeds; the interval is the mean itself for fewer than 2."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(distributions.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
