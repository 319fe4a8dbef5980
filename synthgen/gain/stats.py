"""Accuracies and paired differences of arms, with intervals that cover both the seed and the test images.

Images of one patient or recording, and near duplicates, aren't so many independent images. Where there are such clusters,
*they* are the sample: cluster-robust variance (Cameron & Miller 2015, "A practitioner's guide to cluster-robust
inference"), crossed with the seeds as single images are (Owen 2007), and a bootstrap of whole clusters. An image of no
group is a cluster of its own, and with nothing but such ones every figure is, to the bit, that of independent images.
"""

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
from synthgen.shapes import Bool, Float, Int64, UInt8
from synthgen.types import ClassGain, Interval

POWER = 0.8
"""Chance of finding a true difference that `seeds_needed` asks for."""

MOST_SEEDS = 2**40
"""More than that is as good as no number of seeds."""

RESAMPLES = 2000
"""Of the bootstrap: a 95% limit then moves by about 0.05 standard errors with the random numbers."""

LEVEL = 0.05
"""Of a test, two-sided."""

ADDED = 2.0
"""Sum of squares of the two images, 1 and -1, that are added to the variance over images; see `paired_interval`."""


class _Test(NamedTuple):
    """Student's t over seeds and images: what `paired_interval` says, before its bootstrap."""

    mean: float
    low: float
    high: float
    p: float
    seed_variance: float


# Clusters


def cluster_ids(groups: Sequence[object | None]) -> Int64[np.ndarray, " n"]:
    """A number for the cluster of each image: images of one group share theirs, one of no group (None) has its own."""
    own: dict[object, int] = {}
    return np.array([own.setdefault((i,) if g is None else ("group", g), len(own)) for i, g in enumerate(groups)], np.int64)


def num_clusters(clusters: Int64[np.ndarray, " n"] | None, images: int) -> int:
    """Clusters of so many images; None stands for independent images."""
    return images if clusters is None else len(np.unique(clusters))


def members_of(clusters: Int64[np.ndarray, " m"] | None, images: int) -> Int64[np.ndarray, " m"] | None:
    """Clusters numbered from 0; None where no two images share one."""
    if clusters is None:
        return None
    if len(clusters) != images:
        raise DataError(f"{len(clusters)} cluster ids for {images} test images: they don't belong together")
    names, numbered = np.unique(clusters, return_inverse=True)
    return None if len(names) == images else numbered.reshape(-1).astype(np.int64)


def cluster_sums(values: Float[np.ndarray, "*s n"], members: Int64[np.ndarray, " n"] | None) -> Float[np.ndarray, "*s g"]:
    """Sums over the images of each cluster."""
    if members is None:
        return values
    sums = np.zeros((int(members.max()) + 1, *values.shape[:-1]))
    np.add.at(sums, members, values.T)
    return sums.T


# One comparison


def paired_interval(
    arm: str,
    baseline: str,
    arm_correct: Float[np.ndarray, "s n"],
    baseline_correct: Float[np.ndarray, "s n"],
    clusters: Int64[np.ndarray, " m"] | None = None,
    added: float = ADDED,
) -> Interval:
    """Mean difference in accuracy, in points, with 95% intervals: Student's t, which decides, and BCa beside it.

    Seeds and test images are both samples (of all runs, of all images), crossed: the variance of the mean is at most
    var_over_seeds / s + var_over_images / n (Owen 2007, "The pigeonhole bootstrap": the sum counts the interaction
    twice, so it errs on the wide side). Student's t with Satterthwaite's degrees of freedom, of s - 1 and n - 1.

    Of images in clusters of n_c the second part is sum_c (sum_members (d_i - mean))^2 / (1 - n_c / n) / n^2, with
    n^2 / sum_c n_c^2 - 1 degrees of freedom (Bell & McCaffrey 2002): for g clusters of one size the well-known
    g / (g - 1) sum_c (...)^2 / n^2 with g - 1 (which sizes that differ, 3 to 195, make significant in 8% where this is in 6).
    Two arms that differ by luck on whole groups alone (simulated, 1,000 studies each, 20 to 30 groups of 20 to 45 images):
    18 to 53% are significant where images are taken for the sample, 3 to 5% where groups are.

    The bootstrap resamples seeds and images (clusters), each with replacement (Owen 2007), and is read by `bca_limits`.
    It sees skewness, but of few seeds its spread is short by sqrt((s - 1) / s) and it knows no t. An arm against itself at
    other seeds (simulated, 1,000 to 2,000 studies each): 3 to 7% are significant by the t; by BCa 8 to 26% with 3 seeds, 2 to
    14% with 5 and 3 to 10% with 10, the more the more whole seeds vary.

    Two arms that agree on nearly every test image show little variance, and may still differ on others. So two images of
    no cluster are added to what the variance over images is estimated from, one that the arm alone gets right and one that
    the baseline alone does, at every seed (Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data"); the difference itself stays as it is. Two arms that agree on all of 134
    images then differ by -2.1 to +2.1 points. Of a true gain of 1 point that stands on 1% of the images, with .1 to .5% luck
    beside it, 10 seeds cover 65 to 81% on 100 to 134 images without the two, and 95 to 100% with them. That holds for independent
    images: a gain that stands on whole clusters, of which a test set holds few, is hidden from it as it was (20 to 45% covered
    where 1 to 3% of the clusters gain, of 20 clusters).

    Args:
        arm, baseline: their names.
        arm_correct, baseline_correct: 1 where the classifier of seed s is right on test image n, else 0.
        clusters: images of the same number aren't independent; None where all are.
        added: sum of squares of the two added images; 0 for none.

    Raises:
        DataError: fewer than 2 seeds or 2 images (clusters), or arms of different shapes.

    Cost: 10 ms for 10 seeds and 900 images, 0.1 s for 10,000 images; the resamples are drawn once for each shape.
    """
    differences = _differences(arm_correct, baseline_correct)
    seeds, images = differences.shape
    members, independent = members_of(clusters, images), num_clusters(clusters, images)
    if seeds < 2 or independent < 2:
        raise DataError(f"{arm} against {baseline}: {_few(seeds, images, independent)}; an interval needs at least 2 of each")
    test = _t_test(differences, members, added)
    boot_low, boot_high = _bootstrap_limits(differences, members)
    needed = seeds_needed(test.mean, test.seed_variance, *_apart(differences, members, added), independent)
    effect = test.mean / math.sqrt(test.seed_variance) if test.seed_variance > 0 else None
    return Interval(
        arm, baseline, test.mean, test.low, test.high, seeds, needed, boot_low, boot_high, test.p, test.p, effect
    )  # fmt: skip


def accuracy_interval(
    correct: Float[np.ndarray, "s n"], clusters: Int64[np.ndarray, " n"] | None = None
) -> tuple[float, float, float]:
    """Accuracy as a share, with its 95% interval over seeds and test images (clusters): as `paired_interval`, of one arm,
    with two right and two wrong images added to what the variance is estimated from (Agresti & Coull 1998).

    Where every seed is right on every image, or wrong, it is the exact interval of as many independent trials as there are
    clusters (Clopper & Pearson 1934): 20 of 20 is 83 to 100%.

    Raises:
        DataError: fewer than 2 seeds or 2 images (clusters).
    """
    seeds, images = correct.shape
    independent = num_clusters(clusters, images)
    if seeds < 2 or independent < 2:
        raise DataError(f"{_few(seeds, images, independent)}; the interval of an accuracy needs at least 2 of each")
    test = _t_test(np.asarray(correct, np.float64), members_of(clusters, images), added=1.0)
    mean, low, high = test.mean / 100, test.low / 100, test.high / 100
    if mean in (0.0, 1.0):
        end = (LEVEL / 2) ** (1 / independent)
        return (mean, end, 1.0) if mean else (mean, 0.0, 1.0 - end)
    return mean, max(0.0, low), min(1.0, high)


def _few(seeds: int, images: int, independent: int) -> str:
    within = "" if independent == images else f" in {independent} group{'s' * (independent > 1)}"
    return f"{seeds} seeds and {images} test images{within}"


def _differences(arm_correct: Float[np.ndarray, "s n"], baseline_correct: Float[np.ndarray, "t m"]) -> Float[np.ndarray, "s n"]:
    """Right minus right: -1, 0 or 1, so that every sum over them is exact."""
    if arm_correct.shape != baseline_correct.shape:
        raise DataError(f"arms of {arm_correct.shape} and {baseline_correct.shape} seeds and test images can't be paired")
    return arm_correct.astype(np.float64) - baseline_correct


def _t_test(differences: Float[np.ndarray, "s n"], members: Int64[np.ndarray, " n"] | None, added: float) -> _Test:
    """Without any variance low and high are the mean, and p is 1 for a mean of 0, else 0."""
    seeds, images = differences.shape
    mean = 100.0 * float(differences.mean())
    seed_variance = float(differences.sum(1).var(ddof=1)) * (100.0 / images) ** 2
    totals = differences.sum(0)
    by_seed, of_images = seed_variance / seeds, images - 1.0
    if members is None:
        spread = float(((totals - totals.mean()) ** 2).sum()) / seeds**2 + added
        by_image = spread * 100.0**2 / (images - 1) / images
    else:
        shares = np.bincount(members) / images
        summed = cluster_sums(totals - totals.mean(), members)
        spread = float((summed**2 / (1 - shares)).sum()) / seeds**2 + added
        by_image = spread * (100.0 / images) ** 2
        of_images = float(1 / (shares**2).sum()) - 1
    variance = by_seed + by_image
    if variance == 0:
        return _Test(mean, mean, mean, float(mean == 0), 0.0)
    freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_image**2 / of_images)
    half = float(distributions.t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(variance)
    p = 2 * float(distributions.t.sf(abs(mean) / math.sqrt(variance), freedom))
    return _Test(mean, max(-100.0, mean - half), min(100.0, mean + half), p, seed_variance)


def _apart(differences: Float[np.ndarray, "s n"], members: Int64[np.ndarray, " n"] | None, added: float) -> tuple[float, float]:
    """Parts of the variance of the mean, in points^2, by ANOVA: what no number of seeds takes away,
    (MS_images - MS_interaction) / s / n, and what one seed has of luck on single images, MS_interaction / n."""
    seeds, images = differences.shape
    points = 100.0 * differences
    shares = np.full(images, 1 / images) if members is None else np.bincount(members) / images
    weights = 1 / (1 - shares) / images**2
    centred = cluster_sums(points - points.mean(0) - points.mean(1, keepdims=True) + points.mean(), members)
    by_image = cluster_sums(points.mean(0) - points.mean(), members)
    interaction = float((centred**2 @ weights).sum()) / max(1, seeds - 1)
    beyond = max(0.0, float(by_image**2 @ weights) - interaction / seeds)
    return beyond + added * (100.0 / images) ** 2, interaction


# The bootstrap


def _bootstrap_limits(
    differences: Float[np.ndarray, "s n"], members: Int64[np.ndarray, " n"] | None = None
) -> tuple[float, float]:
    """95% limits of the mean difference, in points, over resampled seeds and images, or whole clusters of them."""
    seeds, images = differences.shape
    parts = cluster_sums(differences, members)
    of_seeds, of_parts = _resamples(seeds, parts.shape[1])
    sizes = np.ones((1, images)) if members is None else np.bincount(members)[None]
    columns = np.ascontiguousarray(np.concatenate([parts, sizes]).T, dtype=np.float32)
    # (B, g) @ (g, s + 1) gives each seed's sum over the drawn images, and their number: exact, for all are whole and < 2^24
    drawn = np.concatenate([chunk.astype(np.float32) @ columns for chunk in np.array_split(of_parts, _chunks(parts.shape[1]))])
    by_seed, num = drawn[:, :-1].astype(np.float64), drawn[:, -1].astype(np.float64)
    resampled = (by_seed * of_seeds).sum(1) * 100.0 / (seeds * num)
    mean = differences.sum() * 100.0 / (seeds * images)
    rows = 100.0 * (differences.sum(1) / images) - mean
    # of a mean over clusters, a ratio of sums, the influence of a cluster is its sum of deviations over the mean size
    influence = cluster_sums(100.0 * (differences.sum(0) / seeds) - mean, members)
    return bca_limits(resampled, float(mean), [rows, influence if members is None else influence * (parts.shape[1] / images)])


def bca_limits(
    resampled: Float[np.ndarray, " b"], estimate: float, influences: Sequence[Float[np.ndarray, " _"]]
) -> tuple[float, float]:
    """95% limits of an estimate, bias-corrected and accelerated (Efron 1987; DiCiccio & Efron 1996, section 2).

    The acceleration is that of several samples (Davison & Hinkley 1997, section 5.3.2): with l_kj the influence of member
    j of sample k, a = (sum_k sum_j l_kj^3 / n_k^3) / 6 / (sum_k sum_j l_kj^2 / n_k^2)^1.5. Here the samples are the seeds
    and the images, and as the estimate is linear in each, the jackknife value (n_k - 1) (mean - mean without j) of a
    seed or an image is its own mean less the whole mean; of a cluster it is that to first order.

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
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> tuple[ClassGain, ...]:
    """What each class and each group gains or loses: paired t intervals (see `paired_interval`), Holm over all of them.

    What is said of a class is said of other patients too, so its sample is the clusters; what is said of a group is said of
    that very patient or recording, whose images are then the sample.

    No images are added (see `paired_interval`): a warning is to be early. But "harmed" needs enough images: of m images
    (clusters) on which the arms differ at all, no sign test can have a p below 2^(1 - m), and neither has this one, however
    small the spread of so few happens to be.

    Args:
        classes, groups: name -> which test images are of it, in the order of the result. One without an image has no
            recall and is left out; one with a single image (cluster) gets the whole range of -100 to 100 and no test.
        arm_correct, baseline_correct: 1 where the classifier of seed s is right on test image n, else 0.
        clusters: as in `paired_interval`.

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
        own = differences[:, mask]
        mean = 100.0 * float(own.mean())
        low, high = -100.0, 100.0
        within = clusters[mask] if clusters is not None and kind == "class" else None
        if num_clusters(within, num_test) > 1:
            members = members_of(within, num_test)
            test = _t_test(own, members, added=0.0)
            low, high = test.low, test.high
            differing = int((cluster_sums((own != 0).any(0).astype(np.float64), members) > 0).sum())
            tested.append((len(found), max(test.p, min(1.0, 2.0 ** (1 - differing)))))
        recalls = float(baseline_correct[:, mask].mean()), float(arm_correct[:, mask].mean())
        found.append(ClassGain(name, kind, num_test, *recalls, mean, low, high, False))  # type: ignore[arg-type]
    for (place, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        found[place] = replace(found[place], harmed=p < LEVEL and found[place].difference < 0)
    return tuple(found)


# Seeds


def seeds_needed(
    difference: float, seed_variance: float, image_variance: float, interaction: float = 0.0, images: int | None = None
) -> int | None:
    """Seeds at which a true `difference` would be found with about 80% power; None if the test set is too small for any number.

    The difference has to measure t(97.5%) standard errors as the test will estimate them, plus t(80%) as they are, with the
    degrees of freedom that so many seeds leave. Simulated, of answers between 5 and 28 seeds: 81 to 91% power; normal
    quantiles ask for 3 instead of 5, which have 56 to 59%. Found by doubling, then by halves.

    Args:
        difference: in points.
        seed_variance: of one seed's mean difference, in points^2; its luck on single images is within.
        image_variance: of the mean difference of endless seeds.
        interaction: of `seed_variance` what is luck on single images; the test counts that twice (see `paired_interval`).
        images: independent ones, that is clusters; None for plenty.
    """

    def enough(seeds: int) -> bool:
        by_seed, by_image = seed_variance / seeds, image_variance + interaction / seeds
        estimated = by_seed + by_image
        loose = by_seed**2 / (seeds - 1) + (by_image**2 / (images - 1) if images else 0.0)
        freedom = estimated**2 / loose if loose > 0 else math.inf
        found, power = distributions.t.ppf([1 - LEVEL / 2, POWER], freedom)
        return bool(abs(difference) > found * math.sqrt(estimated) + power * math.sqrt(by_seed + image_variance))

    if difference == 0 or not enough(MOST_SEEDS):
        return None
    most = 2
    while not enough(most):
        most *= 2
    least = max(2, most // 2 + 1)
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle + 1, most)
    return most


def mean_interval(values: Float[np.ndarray, " s"]) -> tuple[float, float, float]:
    """Mean and 95% t interval over independent draws, as whole runs are; the mean itself for fewer than 2.

    Not for networks that are scored on the same test images: see `accuracy_interval`.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, mean, mean
    half = float(distributions.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half
