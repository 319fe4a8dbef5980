"""Test images that come in groups (patients, recordings): whole groups are the sample, in every interval of the study."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions
from scipy.stats import norm

from synthgen.errors import DataError
from synthgen.gain.curve import class_needs, learning_curve
from synthgen.gain.stats import accuracy_interval, class_gains, cluster_ids, paired_interval
from synthgen.types import CurvePoint
from tests.reference.test_gain_stats import study

DRAWS = 200


def grouped(rng: np.random.Generator, sizes: np.ndarray, luck: float, arms: int = 2, seeds: int = 10) -> list[np.ndarray]:
    """Right or wrong of arms that are equally good on all groups there are: each has luck of its own on whole groups."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    shared = rng.standard_normal(len(of)) + rng.standard_normal(len(sizes))[of]
    return [
        (
            1.2
            + shared
            + luck * rng.standard_normal(len(sizes))[of]
            + 0.1 * rng.standard_normal((seeds, 1))
            + rng.standard_normal((seeds, len(of)))
            > 0
        ).astype(np.float64)
        for _ in range(arms)
    ]


@pytest.mark.parametrize(
    ("sizes", "luck"),
    [
        (np.full(20, 45), 0.3),
        (np.full(30, 20), 0.6),
        (np.round(25 * np.exp(norm.ppf((np.arange(25) + 0.5) / 25))).astype(int), 0.6),  # 3 to 195 images
        (np.r_[np.full(20, 30), np.ones(300, int)], 0.6),  # 300 images of no group
    ],
)
def test_equal_arms_are_rarely_significant_and_were_where_images_were_the_sample(sizes, luck):
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(len(sizes)), sizes)
    by_group, by_image = [], []
    for _ in range(DRAWS):
        one, other = grouped(rng, sizes, luck)
        by_group.append(paired_interval("a", "b", one, other, of).p < 0.05)
        by_image.append(paired_interval("a", "b", one, other).p < 0.05)
    assert np.mean(by_group) <= 0.08
    assert np.mean(by_image) >= 0.15, "the scenario tells the two apart"


def test_a_gain_on_every_group_is_found():
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(30), 20)
    found = []
    for _ in range(50):
        one, other = grouped(rng, np.full(30, 20), 0.0)
        found.append(paired_interval("a", "b", np.maximum(one, rng.random(one.shape) < 0.3), other, of).low > 0)
    assert np.mean(found) > 0.95


@pytest.mark.parametrize(("seeds", "images"), [(2, 17), (10, 300)])
def test_images_of_no_group_are_independent_to_the_bit(seeds, images):
    new, old = study(np.random.default_rng(0), seeds, images, 0.2)
    alone = np.random.default_rng(1).permutation(images)
    assert paired_interval("new", "old", new, old, alone) == paired_interval("new", "old", new, old)
    assert accuracy_interval(new, alone) == accuracy_interval(new)
    masks = {"some": np.arange(images) % 3 == 0}
    assert class_gains(masks, {}, new, old, alone) == class_gains(masks, {}, new, old)


def test_groups_of_one_size_are_images_of_their_means():
    """So the interval is that of a table of group means, and the bootstrap too, to its random numbers (which are the same)."""
    one, other = grouped(np.random.default_rng(0), np.full(20, 6), 0.5)
    found = paired_interval("a", "b", one, other, np.repeat(np.arange(20), 6), added=0.0)
    sums = (one - other).reshape(10, 20, 6).sum(2)
    expected = paired_interval("a", "b", sums, np.zeros((10, 20)), added=0.0)
    for name in ("difference", "low", "high", "boot_low", "boot_high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name) / 6), name
    assert (found.p, found.effect_size) == pytest.approx((expected.p, expected.effect_size))
    assert found.seeds_needed == expected.seeds_needed


def test_without_seed_variance_it_is_the_cluster_robust_interval():
    """Of groups of one size: Student's t over their means (Cameron & Miller 2015, section II)."""
    by_group = np.random.default_rng(0).integers(0, 2, 25).astype(np.float64)
    new, old = np.tile(np.repeat(by_group, 8), (4, 1)), np.zeros((4, 200))
    found = paired_interval("new", "old", new, old, np.arange(200) // 8, added=0.0)
    expected = distributions.ttest_1samp(100 * by_group, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_groups_and_their_absence_become_clusters():
    found = cluster_ids(["a", None, "b", "a", None])
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 4


@pytest.mark.parametrize("of", [np.zeros(40, np.int64), np.full(40, 7)])
def test_a_single_group_has_no_interval(of):
    new, old = study(np.random.default_rng(0), 3, 40, 0.2)
    with pytest.raises(DataError, match="40 test images in 1 group; an interval needs at least 2 of each"):
        paired_interval("new", "old", new, old, of)
    with pytest.raises(DataError, match="in 1 group"):
        accuracy_interval(new, of)
    with pytest.raises(DataError, match="39 cluster ids for 40 test images"):
        paired_interval("new", "old", new, old, np.arange(39))


# Classes


def test_a_class_of_two_patients_is_not_harmed_and_a_patient_is():
    """A class that is lost on one of its patients alone: nobody knows how it is with others. That patient's loss is sure."""
    of = np.repeat(np.arange(10), 30)
    cat = of < 2
    old, new = np.ones((5, 300)), np.ones((5, 300))
    new[:, of == 0] = 0
    found = class_gains({"cat": cat, "dog": ~cat}, {"p0": of == 0, "p5": of == 5}, new, old, of)
    assert {g.name: g.harmed for g in found} == {"cat": False, "dog": False, "p0": True, "p5": False}
    assert (found[0].low, found[0].high) == (-100, 100)
    assert class_gains({"cat": cat}, {}, new, old)[0].harmed, "by images it was"
    (alone,) = class_gains({"one patient's": of == 0}, {}, new, old, of)
    assert (alone.low, alone.high, alone.harmed) == (-100, 100, False)


# Accuracies


def test_the_interval_of_an_accuracy_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = norm.cdf(1 / math.sqrt(1 + 0.7**2 + 0.25**2 + 1))
    found = [accuracy_interval(study(rng, 5, 200, 0.0)[0]) for _ in range(DRAWS)]
    assert 0.92 <= np.mean([low <= truth <= high for _, low, high in found]) <= 1.0
    over_seeds = [
        distributions.t.interval(0.95, 4, right.mean(), right.std(ddof=1) / math.sqrt(5))
        for right in (study(rng, 5, 200, 0.0)[0].mean(1) for _ in range(DRAWS))
    ]
    assert np.mean([low <= truth <= high for low, high in over_seeds]) < 0.9, "the scenario tells the two apart"


def test_a_classifier_without_luck_still_has_an_interval():
    """An SVM is the same at every seed: 87.75% of 898 images is 85.6 to 89.9%, not 87.8 to 87.8%."""
    right = np.zeros((10, 898))
    right[:, :788] = 1
    mean, low, high = accuracy_interval(right)
    half = distributions.t.ppf(0.975, 897) * math.sqrt((mean * (1 - mean) + 1 / 898) / 897)
    assert (mean, low, high) == pytest.approx((788 / 898, mean - half, mean + half))
    assert (round(low, 3), round(high, 3)) == (0.856, 0.899)
    wide = accuracy_interval(right, np.arange(898) // 30)
    assert wide[2] - wide[1] > 2 * (high - low)


def test_all_right_and_all_wrong_have_the_exact_interval():
    exact = distributions.binomtest(20, 20).proportion_ci()
    assert accuracy_interval(np.ones((3, 20))) == pytest.approx((1, exact.low, 1))
    assert accuracy_interval(np.zeros((3, 20))) == pytest.approx((0, 0, 1 - exact.low))
    assert accuracy_interval(np.ones((3, 60)), np.arange(60) // 3) == pytest.approx((1, exact.low, 1))


# The curve


def test_the_exchange_rate_covers_the_truth_where_images_come_in_groups():
    """An arm that is as good as 283 images, better on some patients and worse on others."""
    rng = np.random.default_rng(0)
    sizes, groups, each = (50, 100, 200, 400, 800), 25, 12
    of, spread = np.repeat(np.arange(groups), each), math.sqrt(1 + 1 + 0.6**2 + 0.7**2)
    covered: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(60):
        hard = rng.standard_normal(groups * each) + rng.standard_normal(groups)[of]

        def right(n: float, hard: np.ndarray = hard) -> np.ndarray:
            liked = hard + 0.6 * rng.standard_normal(groups)[of] + 0.7 * rng.standard_normal((8, groups * each))
            return (liked + norm.ppf(0.95 - 2 * n**-0.5) * spread > 0).astype(np.float64)

        of_sizes, arm = [right(n) for n in sizes], right(283)
        points = [CurvePoint(n, tuple(found.mean(1)), "train") for n, found in zip(sizes, of_sizes, strict=True)]
        for known in (True, False):
            given = (of_sizes, {"synthetic": arm}, of if known else None)
            exchange = learning_curve("real", points, 100, {"synthetic": arm.mean(1)}, 100, False, *given).exchange[0]
            covered[known].append((exchange.low or 0) <= 283 <= (exchange.high or math.inf))
    assert np.mean(covered[True]) >= 0.93
    assert np.mean(covered[False]) < 0.9, "the scenario tells the two apart"


def test_what_a_class_needs_is_told_over_its_images_and_groups():
    """All seeds agree, so that over seeds alone the interval was a point."""
    rng = np.random.default_rng(0)
    labels, of = np.repeat([0, 1, 2], [100, 100, 30]), np.r_[np.arange(200) // 10, np.full(30, 99)]
    rights = [np.tile((rng.random(230) < share).astype(np.float64), (5, 1)) for share in (0.5, 0.6, 0.7)]
    alone = class_needs((100, 200, 400), rights, labels, 4, 400, 200)
    grouped_too = class_needs((100, 200, 400), rights, labels, 4, 400, 200, of)
    assert alone[0] is not None
    assert alone[0][2] - alone[0][1] > 1
    assert alone[2] is not None
    assert grouped_too[2] is None, "of a single patient"
    assert alone[3] is None, "not in the test set"
    assert grouped_too[0] is not None
    assert grouped_too[0][0] == alone[0][0]


def test_the_whole_range_is_never_left():
    found = accuracy_interval(np.r_[np.ones((9, 5)), [[1, 1, 1, 1, 0]]])
    assert found[2] == 1
    assert replace(CurvePoint(5, (0.5, 0.7), "train")).estimate == pytest.approx((60, 60, 60))
    assert CurvePoint(5, (0.5, 0.7), "train", 0.4, 0.8).estimate == pytest.approx((60, 40, 80))
