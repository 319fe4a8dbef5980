"""Paired intervals against brute force: crossed seeds x images are simulated, and the truth must lie inside."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions

from synthgen.gain.stats import mean_interval, paired_interval, seeds_needed
from synthgen.gain.study import decide
from synthgen.types import Interval

DRAWS = 400
NOISE, SEED, IMAGE, SHARED = 1.0, 0.25, 0.7, 1.0
SPREAD = math.sqrt(NOISE**2 + SEED**2 + IMAGE**2 + SHARED**2)


def study(rng: np.random.Generator, seeds: int, images: int, lift: float, **spreads: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two arms on the same test images: each has luck of its own by seed, by image, and by both."""
    of = {"noise": NOISE, "seed": SEED, "image": IMAGE, "shared": SHARED} | spreads
    shared = of["shared"] * rng.standard_normal(images)
    right = [
        at
        + shared
        + of["image"] * rng.standard_normal(images)
        + of["seed"] * rng.standard_normal((seeds, 1))
        + of["noise"] * rng.standard_normal((seeds, images))
        > 0
        for at in (1.0 + lift, 1.0)
    ]
    return right[0].astype(np.float64), right[1].astype(np.float64)


def simulated(seeds: int, images: int, lift: float) -> tuple[list[Interval], float]:
    """Intervals of many studies, and the true difference in points of accuracy over all seeds and images."""
    rng = np.random.default_rng(seeds * images)
    found = [paired_interval("new", "old", *study(rng, seeds, images, lift)) for _ in range(DRAWS)]
    truth = 100 * (distributions.norm.cdf((1 + lift) / SPREAD) - distributions.norm.cdf(1 / SPREAD))
    return found, float(truth)


@pytest.mark.parametrize(("seeds", "images"), [(3, 100), (5, 300), (10, 900)])
def test_the_interval_covers_the_truth(seeds, images):
    found, truth = simulated(seeds, images, lift=0.2)
    covered = np.mean([i.low <= truth <= i.high for i in found])
    assert 0.93 <= covered <= 1.0
    assert abs(np.mean([i.difference for i in found]) - truth) < 0.5
    spread = np.std([i.difference for i in found])
    width = np.mean([i.high - i.low for i in found]) / 2 / spread
    assert 1.8 < width < 4, "wide enough, and not so wide that it says nothing"


@pytest.mark.parametrize(("seeds", "images"), [(3, 100), (5, 300)])
def test_nothing_against_nothing_is_rarely_significant(seeds, images):
    found, truth = simulated(seeds, images, lift=0.0)
    assert truth == 0
    assert np.mean([i.low > 0 or i.high < 0 for i in found]) <= 0.06


def test_more_seeds_cannot_replace_test_images():
    """With 100 images, the interval of 50 seeds still covers: the images' luck is in it."""
    found, truth = simulated(50, 100, lift=0.2)
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.93
    over_seeds_alone = []
    rng = np.random.default_rng(1)
    for _ in range(DRAWS):
        new, old = study(rng, 50, 100, 0.2)
        low, high = distributions.ttest_1samp(100 * (new - old).mean(1), 0).confidence_interval()
        over_seeds_alone.append(low <= truth <= high)
    assert np.mean(over_seeds_alone) < 0.8, "the scenario tells the two apart"


def test_without_image_variance_it_is_students_interval_over_seeds():
    by_seed = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    new, old = np.repeat(by_seed[:, None], 40, axis=1), np.zeros((7, 40))
    found = paired_interval("new", "old", new, old)
    expected = distributions.ttest_1samp(100 * by_seed, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.difference == pytest.approx(100 * 5 / 7)
    assert (found.arm, found.baseline, found.seeds) == ("new", "old", 7)


def test_without_seed_variance_it_is_students_interval_over_images():
    by_image = np.random.default_rng(0).integers(0, 2, 300).astype(np.float64)
    found = paired_interval("new", "old", np.tile(by_image, (4, 1)), np.zeros((4, 300)))
    expected = distributions.ttest_1samp(100 * by_image, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_pairing_takes_out_what_both_arms_share():
    rng = np.random.default_rng(0)
    old = (rng.random((5, 1)) + rng.random((5, 500)) > 0.8).astype(np.float64)
    new = np.maximum(old, (rng.random((5, 500)) < 0.02).astype(np.float64))
    paired = paired_interval("new", "old", new, old)
    unpaired = paired_interval("new", "old", new, old[::-1, ::-1])
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_the_same_arm_twice_differs_by_nothing():
    same = np.ones((3, 10))
    found = paired_interval("new", "old", same, same)
    assert (found.difference, found.low, found.high, found.seeds_needed) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("difference", "seed_variance", "image_variance"), [(1.0, 4.0, 0.02), (-2.0, 30.0, 0.1), (0.5, 9.0, 0.0)]
)
def test_seeds_needed_give_80_percent_power_and_no_fewer_do(difference, seed_variance, image_variance):
    def power(seeds: int) -> float:
        error = math.sqrt(seed_variance / seeds + image_variance)
        return float(distributions.norm.cdf(abs(difference) / error - distributions.norm.ppf(0.975)))

    seeds = seeds_needed(difference, seed_variance, image_variance)
    assert power(seeds) >= 0.8 - 1e-6
    assert power(seeds - 1) < 0.8


def test_no_number_of_seeds_helps_where_the_test_set_is_too_small():
    assert seeds_needed(1.0, 4.0, 1 / 2.801585**2 + 1e-6) is None
    assert seeds_needed(1.0, 4.0, 1 / 2.801585**2 - 1e-3) > 100
    assert seeds_needed(0.0, 4.0, 0.1) is None
    assert seeds_needed(50.0, 0.001, 0.1) == 2


def test_only_what_the_images_alone_vary_counts_as_beyond_the_reach_of_seeds():
    rng = np.random.default_rng(3)
    # seeds disagree image by image, no image is special: more seeds settle any difference
    noisy = (rng.random((4, 2000)) < 0.6).astype(np.float64)
    other = (rng.random((4, 2000)) < 0.595).astype(np.float64)
    assert paired_interval("new", "old", noisy, other).seeds_needed is not None
    # all seeds agree on which images differ: no number of seeds does
    gains = np.tile((rng.random(2000) < 0.02).astype(np.float64), (4, 1))
    losses = np.tile((rng.random(2000) < 0.018).astype(np.float64), (4, 1))
    assert paired_interval("new", "old", gains, losses).seeds_needed is None


def test_the_mean_interval_is_students():
    values = np.array([0.71, 0.74, 0.69, 0.75, 0.73])
    expected = distributions.t.interval(0.95, 4, values.mean(), values.std(ddof=1) / math.sqrt(5))
    assert mean_interval(values) == pytest.approx((values.mean(), *expected))
    assert mean_interval(values[:1]) == (0.71, 0.71, 0.71)


# The verdict

PLAIN = Interval("synthetic_gated", "real_aug", 0.0, 0.0, 0.0, 5, 40)


@pytest.mark.parametrize(
    ("bounds", "verdict", "because"),
    [
        ([(0.1, 3)], "use", None),
        ([(0.1, 3), (2, 4)], "use", None),
        ([(0.01, 0.4)], "use", None),  # proven, if small
        ([(-3, -0.1)], "reject", "it harms"),
        ([(-3, 0.0)], "reject", "it can't bring 0.5 points, the smallest gain worth having"),
        ([(-3, 0.49)], "reject", "it can't bring 0.5 points"),
        ([(1, 4), (-3, 0.2)], "reject", "it can't bring 0.5 points"),
        ([(-3, -0.1), (-1, 0.3)], "reject", "it harms"),
        ([(-3, 0.5)], "insufficient evidence", "would need about 40 seeds"),  # 0.5 itself would be worth having
        ([(0.0, 3)], "insufficient evidence", "would need about 40 seeds"),  # 0 itself is no gain
        ([(1, 4), (-1, 2)], "insufficient evidence", "would need about 40 seeds"),
        ([], "insufficient evidence", None),
    ],
)
def test_the_verdict_follows_from_the_intervals(bounds, verdict, because):
    intervals = [replace(PLAIN, low=low, high=high, difference=(low + high) / 2) for low, high in bounds]
    found, reasons = decide(intervals, smallest_gain=0.5, num_test=900)
    assert found == verdict
    assert len(reasons) == len(bounds) + (because is not None)
    if because is not None:
        assert because in reasons[-1]
    for interval, reason in zip(intervals, reasons, strict=False):
        assert f"{interval.low:+.2f} to {interval.high:+.2f}, 5 seeds, 900 test images" in reason


def test_with_no_smallest_gain_only_harm_and_nothing_reject():
    for low, high, verdict in [(-1, 0.01, "insufficient evidence"), (-1, 0, "reject"), (0, 0, "reject"), (0.01, 1, "use")]:
        assert decide([replace(PLAIN, low=low, high=high)], smallest_gain=0.0, num_test=900)[0] == verdict


def test_an_open_verdict_says_when_no_number_of_seeds_can_help():
    _, reasons = decide([replace(PLAIN, low=-2, high=2, seeds_needed=None)], smallest_gain=0.5, num_test=900)
    assert "900 test images are too few" in reasons[-1]
    _, reasons = decide([replace(PLAIN, low=-2, high=2, seeds_needed=3)], smallest_gain=0.5, num_test=900)
    assert "about 6 seeds" in reasons[-1], "more than the 5 that weren't enough"
