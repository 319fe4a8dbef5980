"""Paired differences between arms, with intervals that cover both the seed and the test images."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats as distributions

from synthgen.shapes import Float
from synthgen.types import Interval

POWER_80 = 1.959964 + 0.841621
"""Standard errors that a true difference must measure to be found (two-sided 5%) with 80% power."""


def paired_interval(
    arm: str, baseline: str, arm_correct: Float[np.ndarray, "s n"], baseline_correct: Float[np.ndarray, "s n"]
) -> Interval:
    """Mean difference in accuracy, in points, with a 95% interval.

    Seeds and test images are both samples (of all runs, of all images), crossed: the variance of the mean is at most
    var_over_seeds / s + var_over_images / n (Owen 2007, "The pigeonhole bootstrap": the sum counts the interaction
    twice, so it errs on the wide side). Student's t with Satterthwaite's degrees of freedom.

    Args:
        arm, baseline: their names.
        arm_correct, baseline_correct: 1 where the classifier of seed s is right on test image n, else 0; at least 2 seeds.
    """
    differences = 100.0 * (arm_correct.astype(np.float64) - baseline_correct)
    seeds, images = differences.shape
    mean = float(differences.mean())
    by_seed = float(differences.mean(1).var(ddof=1)) / seeds
    by_image = float(differences.mean(0).var(ddof=1)) / images
    variance = by_seed + by_image
    if variance == 0:
        return Interval(arm, baseline, mean, mean, mean, seeds, None)
    freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_image**2 / (images - 1))
    half = float(distributions.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Interval(
        arm, baseline, mean, mean - half, mean + half, seeds, seeds_needed(mean, by_seed * seeds, _images_alone(differences))
    )


def _images_alone(differences: Float[np.ndarray, "s n"]) -> float:
    """Variance of the mean that no number of seeds takes away: (MS_images - MS_interaction) / s / n, two-way ANOVA."""
    seeds, images = differences.shape
    centred = differences - differences.mean(0) - differences.mean(1, keepdims=True) + differences.mean()
    interaction = float((centred**2).sum()) / max(1, (seeds - 1) * (images - 1))
    return max(0.0, float(differences.mean(0).var(ddof=1)) - interaction / seeds) / images


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
