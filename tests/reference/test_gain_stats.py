"""Paired intervals against brute force: crossed seeds x images are simulated, and the truth must lie inside."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as distributions

from synthgen.errors import DataError
from synthgen.gain.stats import bootstrap_counts, class_gains, corrected, holm, mean_interval, paired_interval, seeds_needed
from synthgen.gain.verdict import decide
from synthgen.types import Interval

DRAWS = 200
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


@pytest.mark.parametrize(("seeds", "images", "seed_effect"), [(3, 300, 0.25), (5, 300, 0.1), (5, 300, 0.5), (10, 900, 0.25)])
def test_an_arm_against_itself_at_other_seeds_is_significant_in_about_5_percent(seeds, images, seed_effect):
    """The test of the test: the same images are easy for both, only seeds and their luck on single images differ."""
    rng = np.random.default_rng(0)
    found = [paired_interval("a", "a", *study(rng, seeds, images, 0.0, seed=seed_effect, image=0.0)) for _ in range(DRAWS)]
    assert 0.01 <= np.mean([i.p < 0.05 for i in found]) <= 0.09
    assert [i.p < 0.05 for i in found] == [i.low > 0 or i.high < 0 for i in found]
    # the bootstrap of few seeds is too narrow: why it doesn't decide
    assert np.mean([i.boot_low > 0 or i.boot_high < 0 for i in found]) <= (0.25 if seeds < 10 else 0.15)


def test_bca_of_3_seeds_is_as_wrong_as_its_description_says():
    rng = np.random.default_rng(0)
    found = [paired_interval("a", "a", *study(rng, 3, 300, 0.0, seed=0.25, image=0.0)) for _ in range(2 * DRAWS)]
    assert 0.08 <= np.mean([i.boot_low > 0 or i.boot_high < 0 for i in found]) <= 0.26


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
    found = paired_interval("new", "old", new, old, added=0.0)
    expected = distributions.ttest_1samp(100 * by_seed, 0).confidence_interval()  # up to 117: not of a share
    assert (found.low, found.high) == pytest.approx((expected.low, 100))
    assert found.p == pytest.approx(distributions.ttest_1samp(100 * by_seed, 0).pvalue)
    assert found.effect_size == pytest.approx(by_seed.mean() / by_seed.std(ddof=1))
    assert found.difference == pytest.approx(100 * 5 / 7)
    assert (found.arm, found.baseline, found.seeds) == ("new", "old", 7)


def test_without_seed_variance_it_is_students_interval_over_images():
    by_image = np.random.default_rng(0).integers(0, 2, 300).astype(np.float64)
    found = paired_interval("new", "old", np.tile(by_image, (4, 1)), np.zeros((4, 300)), added=0.0)
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


@pytest.mark.parametrize("images", [10, 134, 900])
def test_arms_that_agree_on_every_image_may_differ_on_others(images):
    """Two images are added, one that each arm alone gets right: a sum of squares of 2."""
    half = 100 * distributions.t.ppf(0.975, images - 1) * math.sqrt(2 / (images - 1) / images)
    same = np.ones((3, images))
    found = paired_interval("new", "old", same, same)
    assert (found.difference, found.low, found.high) == pytest.approx((0, -half, half))
    assert (found.boot_low, found.boot_high, found.p, found.p_holm, found.effect_size, found.seeds_needed) == (
        0,
        0,
        1,
        1,
        None,
        None,
    )
    always = paired_interval("new", "old", same, np.zeros((3, images)))
    assert (always.low, always.high) == pytest.approx((100 - half, 100))
    assert (always.boot_low, always.effect_size) == (100, None)
    assert always.p < 0.001
    bare = paired_interval("new", "old", same, same, added=0.0)
    assert (bare.low, bare.high, bare.p) == (0, 0, 1)


@pytest.mark.parametrize("images", [60, 100, 134, 300])
@pytest.mark.parametrize("luck", [0.001, 0.005])
def test_the_interval_covers_where_hardly_an_image_tells_the_arms_apart(images, luck):
    """A gain of 1 point that stands on 1% of the images: a small test set may hold none of them."""
    rng = np.random.default_rng(0)
    covered, rejected = [], []
    for _ in range(2 * DRAWS):
        new = np.tile(rng.random(images) < 0.01, (10, 1)) | (rng.random((10, images)) < luck / 2)
        old = rng.random((10, images)) < luck / 2
        found = paired_interval("new", "old", new.astype(np.float64), old.astype(np.float64))
        covered.append(found.low <= 1 <= found.high)
        rejected.append(decide([found], 0.5, images)[0] == "reject")
    assert np.mean(covered) >= 0.94
    assert np.mean(rejected) <= 0.02


@pytest.mark.parametrize(("images", "decision"), [(550, "insufficient evidence"), (560, "reject")])
def test_agreement_on_few_images_is_no_proof_that_nothing_can_be_gained(images, decision):
    right = np.ones((4, images))
    found, reasons = decide([paired_interval("new", "old", right, right)], 0.5, images)
    assert found == decision, reasons


def test_the_same_differences_in_every_seed_have_no_effect_size():
    tiled = np.tile((np.random.default_rng(0).random(300) < 0.3).astype(np.float64), (3, 1))
    found = paired_interval("new", "old", tiled, np.zeros((3, 300)))
    assert found.effect_size is None
    assert found.low < found.difference < found.high


@pytest.mark.parametrize(("seeds", "images"), [(1, 10), (3, 1)])
def test_a_single_seed_or_image_has_no_interval(seeds, images):
    with pytest.raises(DataError, match="at least 2 of each"):
        paired_interval("new", "old", np.ones((seeds, images)), np.zeros((seeds, images)))


# The bootstrap


@pytest.mark.parametrize(("seeds", "images", "lift"), [(4, 60, 0.3), (10, 200, 0.0), (8, 40, 0.8)])
def test_bca_is_scipys_over_seeds_and_images(seeds, images, lift):
    new, old = study(np.random.default_rng(seeds), seeds, images, lift, seed=0.6)
    differences = 100 * (new - old)

    def mean(rows, columns, axis=-1):
        drawn = differences[rows.astype(int)[..., :, None], columns.astype(int)[..., None, :]]
        return drawn.mean((-2, -1))

    # as two samples of their own: rows of the table, and columns
    peer = distributions.bootstrap(
        (np.arange(seeds), np.arange(images)), mean, n_resamples=10_000, batch=500, method="BCa", rng=np.random.default_rng(0)
    )
    found = paired_interval("new", "old", new, old)
    tolerance = 0.12 * peer.standard_error  # of 2,000 resamples
    assert found.boot_low == pytest.approx(peer.confidence_interval.low, abs=tolerance)
    assert found.boot_high == pytest.approx(peer.confidence_interval.high, abs=tolerance)


def test_bca_leans_to_the_long_tail():
    """A gain on a few images alone: more of them may have been missed than were found by luck."""
    gains = np.zeros((6, 200))
    gains[:, :4] = 1
    found = paired_interval("new", "old", gains, np.zeros((6, 200)))
    assert found.boot_high - found.difference > 1.3 * (found.difference - found.boot_low)
    assert found.boot_low > 0


def test_the_bootstrap_is_the_same_each_time():
    rng = np.random.default_rng(0)
    new, old = study(rng, 5, 100, 0.2)
    first = paired_interval("new", "old", new, old)
    assert paired_interval("new", "old", new, old) == first
    swapped = paired_interval("old", "new", old, new)
    assert swapped.boot_low == pytest.approx(-first.boot_high, abs=0.3 * (first.boot_high - first.boot_low))


@pytest.mark.parametrize("size", [3, 5000])
def test_resamples_are_multinomial(size):
    counts = bootstrap_counts(np.random.default_rng(0), size, 2000).astype(np.float64)
    assert counts.shape == (2000, size)
    assert (counts.sum(1) == size).all()
    assert counts.mean(0) == pytest.approx(np.ones(size), abs=0.12)
    assert counts.var() == pytest.approx(1 - 1 / size, rel=0.05)
    assert len(np.unique(counts, axis=0)) > 9, "10 different resamples of 3 members"


# Many comparisons


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # his procedure, by hand
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(0)
    alarms = [min(holm(list(rng.random(8)))) < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(alarms) < 0.07


def test_arms_are_corrected_within_their_baseline():
    of = {("a", "x"): 0.01, ("b", "x"): 0.04, ("c", "y"): 0.03, ("d", "x"): 0.03}
    found = corrected([replace(PLAIN, arm=arm, baseline=base, p=p, p_holm=p) for (arm, base), p in of.items()])
    assert [i.arm for i in found] == ["a", "b", "c", "d"]
    assert [i.p for i in found] == list(of.values())
    assert [i.p_holm for i in found] == pytest.approx([0.03, 0.06, 0.03, 0.06])


def test_a_class_that_loses_is_found_and_its_neighbours_are_not():
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 6
    old = (rng.random((5, 600)) < 0.8).astype(np.float64)
    new = (rng.random((5, 600)) < 0.8).astype(np.float64)
    old[:, labels == 2] = (rng.random((5, 100)) < 0.9).astype(np.float64)
    new[:, labels == 2] = (rng.random((5, 100)) < 0.6).astype(np.float64)
    new[:, labels == 4] = 1
    odd = labels % 2 == 1
    found = class_gains({str(k): labels == k for k in range(6)}, {"odd": odd, "even": ~odd}, new, old)
    assert [(g.kind, g.name) for g in found] == [("class", str(k)) for k in range(6)] + [("group", "odd"), ("group", "even")]
    assert [g.name for g in found if g.harmed] == ["2"]
    assert [g.num_test for g in found] == [100] * 6 + [300] * 2
    assert found[2].baseline == pytest.approx(old[:, labels == 2].mean())
    assert found[2].difference == pytest.approx(100 * (found[2].arm - found[2].baseline))
    alone = paired_interval("new", "old", new[:, labels == 2], old[:, labels == 2], added=0.0)
    assert (found[2].low, found[2].high) == pytest.approx((alone.low, alone.high))
    assert found[4].low > 0, "a gain is no harm"


def test_classes_of_few_images_raise_no_alarm():
    """No image: left out. One: the whole range. Five that are all lost: as likely as p = 1/16 by their signs alone."""
    masks = {name: np.isin(np.arange(30), rows) for name, rows in {"none": [], "one": [0], "five": range(5)}.items()}
    new, old = np.zeros((4, 30)), np.ones((4, 30))
    found = class_gains(masks, {}, new, old)
    assert [(g.name, g.num_test, g.difference, g.harmed) for g in found] == [("one", 1, -100, False), ("five", 5, -100, False)]
    assert (found[0].low, found[0].high) == (-100, 100)
    assert class_gains({"all": np.ones(30, bool)}, {}, new, old)[0].harmed


@pytest.mark.parametrize("images", [5, 20, 90])
def test_an_arm_against_itself_harms_a_class_in_at_most_5_percent(images):
    rng = np.random.default_rng(images)
    labels = np.arange(10 * images) % 10
    masks = {str(k): labels == k for k in range(10)}
    alarms = [
        any(g.harmed for g in class_gains(masks, {}, *study(rng, 5, 10 * images, 0.0, seed=0.1, image=0.0))) for _ in range(200)
    ]
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize(
    ("difference", "seed_variance", "image_variance"), [(1.0, 4.0, 0.02), (-2.0, 30.0, 0.1), (0.5, 9.0, 0.0)]
)
def test_seeds_needed_give_80_percent_power_and_no_fewer_do(difference, seed_variance, image_variance):
    """Of the t test with Satterthwaite's freedom: the noncentral t's tail, to half a percent."""

    def power(seeds: int) -> float:
        variance = seed_variance / seeds + image_variance
        freedom = variance**2 / ((seed_variance / seeds) ** 2 / (seeds - 1))
        limit = distributions.t.ppf(0.975, freedom)
        return float(distributions.nct.sf(limit, freedom, abs(difference) / math.sqrt(variance)))

    seeds = seeds_needed(difference, seed_variance, image_variance)
    assert power(seeds) >= 0.8 - 0.005
    assert power(seeds - 1) < 0.8 + 0.005


@pytest.mark.parametrize(("lift", "seed", "noise"), [(0.2, 0.05, 1.0), (0.3, 0.1, 0.5)])
def test_few_seeds_needed_have_their_power(lift, seed, noise):
    """Of the test that decides, simulated: with normal quantiles 3 seeds were told, which find it in 57%."""
    rng, spreads = np.random.default_rng(0), {"seed": seed, "noise": noise, "image": 0.1}
    many = [paired_interval("new", "old", *study(rng, 30, 900, lift, **spreads)).seeds_needed for _ in range(9)]
    seeds = int(np.median(many))
    found = [paired_interval("new", "old", *study(rng, seeds, 900, lift, **spreads)).low > 0 for _ in range(DRAWS)]
    assert seeds in (4, 5)
    assert np.mean(found) >= 0.75
    three = [paired_interval("new", "old", *study(rng, 3, 900, lift, **spreads)).low > 0 for _ in range(DRAWS)]
    assert np.mean(three) < 0.7


def test_no_number_of_seeds_helps_where_the_test_set_is_too_small():
    assert seeds_needed(1.0, 4.0, 1 / 2.801585**2 + 1e-6) is None
    assert seeds_needed(1.0, 4.0, 1 / 2.801585**2 - 1e-3) > 100
    assert seeds_needed(0.0, 4.0, 0.1) is None
    assert seeds_needed(50.0, 0.001, 0.1) == 2
    assert seeds_needed(1.0, 4.0, 0.115) is not None
    assert seeds_needed(1.0, 4.0, 0.115, images=20) is None, "20 patients leave fewer degrees of freedom than 900 images"


def test_only_what_the_images_alone_vary_counts_as_beyond_the_reach_of_seeds():
    rng = np.random.default_rng(3)
    # seeds disagree image by image, no image is special: more seeds settle the difference
    noisy = (rng.random((4, 2000)) < 0.6).astype(np.float64)
    other = (rng.random((4, 2000)) < 0.58).astype(np.float64)
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

PLAIN = Interval("synthetic_gated", "real_aug", 0.0, 0.0, 0.0, 5, 40, 0.0, 0.0, 1.0, 1.0, None)


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
    ],
)
def test_the_verdict_follows_from_the_intervals(bounds, verdict, because):
    bases = ["real_aug", "real_trainval"]
    intervals = [
        replace(PLAIN, baseline=base, low=low, high=high, difference=(low + high) / 2)
        for base, (low, high) in zip(bases, bounds, strict=False)
    ]
    found, reasons = decide(intervals, smallest_gain=0.5, num_test=900)
    assert found == verdict
    assert len(reasons) == len(bounds) + (because is not None)
    if because is not None:
        assert because in reasons[-1]
    for interval, reason in zip(intervals, reasons, strict=False):
        assert f"{interval.low:+.2f} to {interval.high:+.2f}, 5 seeds, 900 test images" in reason


def test_of_rivals_that_val_cannot_tell_apart_the_worst_one_for_us_is_named():
    bounds = {"real_aug": (2, 4), "real_cutout": (-1, 2), "real_mixup": (1, 3)}
    intervals = [replace(PLAIN, baseline=base, low=low, high=high, difference=1.0) for base, (low, high) in bounds.items()]
    found, reasons = decide(intervals, smallest_gain=0.5, num_test=900)
    assert found == "insufficient evidence"
    assert "2 other real-only arms from real_aug" in reasons[1]
    assert "against real_cutout" in reasons[1]


def test_with_no_smallest_gain_only_harm_and_nothing_reject():
    for low, high, verdict in [(-1, 0.01, "insufficient evidence"), (-1, 0, "reject"), (0, 0, "reject"), (0.01, 1, "use")]:
        assert decide([replace(PLAIN, low=low, high=high)], smallest_gain=0.0, num_test=900)[0] == verdict


def test_an_open_verdict_says_when_no_number_of_seeds_can_help():
    _, reasons = decide([replace(PLAIN, low=-2, high=2, seeds_needed=None)], smallest_gain=0.5, num_test=900)
    assert "900 test images are too few" in reasons[-1]
    _, reasons = decide([replace(PLAIN, low=-2, high=2, seeds_needed=3)], smallest_gain=0.5, num_test=900)
    assert "about 6 seeds" in reasons[-1], "more than the 5 that weren't enough"
