"""Learning curve and exchange rate against planted power laws: the truth must lie inside, and no answer outside."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from synthgen.errors import DataError
from synthgen.gain.curve import _isotonic, _power_laws, class_needs, fit, learning_curve
from synthgen.types import CurvePoint, Exchange, LearningCurve

SIZES = (50, 100, 200, 400, 800)
LAW = (0.05, 2.0, 0.5)


def accuracy(n: float, law: tuple[float, float, float] = LAW) -> float:
    return 1 - law[0] - law[1] * n ** -law[2]


def trained(rng: np.random.Generator, sizes: list[float], seeds: int, num_test: int = 900) -> list[np.ndarray]:
    """Accuracies at each size: a seed has luck at all sizes alike, luck at each, and the binomial noise of its answers."""
    luck = 0.008 * rng.standard_normal(seeds)
    by_size = [accuracy(n) + luck + 0.005 * rng.standard_normal(seeds) for n in sizes]
    return [rng.binomial(num_test, share) / num_test for share in by_size]


def studied(sizes: tuple[int, ...], worth: float, seeds: int, rng: np.random.Generator, **given: bool) -> LearningCurve:
    """A curve, and an arm of 100 real images that is as good as `worth` of them."""
    *measured, arm = trained(rng, [*sizes, worth], seeds)
    return curve_of(sizes, measured, arm, **given)


def curve_of(sizes: tuple[int, ...], measured: list, arm: np.ndarray, num_train: int = 100, **given: bool) -> LearningCurve:
    points = [CurvePoint(n, tuple(map(float, values)), "train") for n, values in zip(sizes, measured, strict=True)]
    return learning_curve("real", points, num_train, {"synthetic": np.asarray(arm)}, 100, **given)


def exact(*at: float) -> list[np.ndarray]:
    """Accuracies of 3 seeds that are symmetric about the curve, alike at every size."""
    return [accuracy(n) + np.array([-0.002, 0.0, 0.002]) for n in at]


def covers(found: Exchange, worth: float) -> bool:
    """An end that has left the measured sizes is open."""
    return (found.low or 0) <= worth <= (found.high or math.inf)


# The fit


@pytest.mark.parametrize("law", [(0.05, 2.0, 0.5), (0.0, 1.0, 0.25), (0.12, 20.0, 1.1), (0.2, 0.6, 0.1)])
def test_the_fit_finds_a_planted_law(law):
    found = fit(SIZES, [np.full(4, accuracy(n, law)) for n in SIZES])
    assert (found.offset, found.scale, found.exponent) == pytest.approx(law, rel=2e-3, abs=2e-3)
    assert found.error < 1e-3
    assert found.accuracy(150) == pytest.approx(accuracy(150, law), abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_no_start_of_scipys_least_squares_finds_a_better_fit(seed):
    rng = np.random.default_rng(seed)
    values = trained(rng, list(SIZES), 4, num_test=150)
    means = np.array([v.mean() for v in values])
    weights = rng.uniform(0.5, 2, len(SIZES))
    sizes = np.array(SIZES, np.float64)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        offset, scale, exponent = parameters
        return np.sqrt(weights) * (1 - offset - scale * (sizes / 50) ** -exponent - means)

    starts = [(0.01, 0.2, c) for c in (0.05, 0.3, 1.0, 1.8)]
    bounds = ([0, 0, 0.01], [1, 10, 2])
    best = min(optimize.least_squares(residuals, start, bounds=bounds, xtol=1e-12, ftol=1e-12).cost for start in starts)
    offset, scale, exponent = _power_laws(sizes, 1 - means[None], weights)[0]
    ours = 0.5 * (residuals(np.array([offset, scale * 50**-exponent, exponent])) ** 2).sum()
    assert ours <= best * (1 + 1e-4) + 1e-12
    assert offset >= 0
    assert scale >= 0
    assert 0 < exponent <= 2


def test_a_size_that_scatters_pulls_less():
    rng = np.random.default_rng(0)
    values = [accuracy(n) + 1e-4 * rng.standard_normal(5) for n in SIZES]
    values[2] = values[2] - 0.02 + 0.05 * np.array([-1, -0.5, 0, 0.5, 1])
    assert abs(fit(SIZES, values).accuracy(200) - accuracy(200)) < 0.005


def test_a_falling_curve_is_fitted_by_a_flat_one():
    found = fit((50, 100, 200), [np.array([0.8, 0.8]), np.array([0.7, 0.7]), np.array([0.6, 0.6])])
    assert found.scale == 0
    assert found.accuracy(1000) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((50, 100), "at least 3"), ((50, 200, 100), "ascending"), ((50, 50, 100), "ascending"), ((), "ascending")],
)
def test_sizes_that_give_no_curve_are_refused(sizes, message):
    with pytest.raises(DataError, match=message):
        fit(sizes, [np.array([0.5, 0.6])] * len(sizes))


def test_a_size_without_an_accuracy_is_refused():
    with pytest.raises(DataError, match="without an accuracy"):
        curve_of((50, 100), [np.array([0.5]), np.array([])], np.array([0.5]))


@pytest.mark.parametrize("seed", range(5))
def test_the_monotone_means_are_sklearns(seed):
    rng = np.random.default_rng(seed)
    means, counts = rng.random((3, 6)), rng.integers(1, 9, 6).astype(np.float64)
    expected = [IsotonicRegression().fit_transform(np.arange(6), row, sample_weight=counts) for row in means]
    assert _isotonic(means, counts) == pytest.approx(np.array(expected))


# The exchange rate


@pytest.mark.parametrize(("seeds", "worth", "draws"), [(10, 283, 200), (5, 150, 100)])
def test_the_interval_covers_the_planted_worth(seeds, worth, draws):
    rng = np.random.default_rng(seeds)
    found = [studied(SIZES, worth, seeds, rng) for _ in range(draws)]
    exchanges = [each.exchange[0] for each in found]
    assert 0.88 <= np.mean([covers(each, worth) for each in exchanges]) <= 0.99
    assert np.median([each.equivalent for each in exchanges]) == pytest.approx(worth, rel=0.05)
    assert np.median([each.high / each.low for each in exchanges if each.high and each.low]) < 3, "it says something"
    gain = 100 * (accuracy(200) - accuracy(100))
    assert 0.88 <= np.mean([each.next_gain[1] <= gain <= each.next_gain[2] for each in found]) <= 0.99
    assert np.median([each.next_gain[0] for each in found]) == pytest.approx(gain, rel=0.1)


def test_resampled_test_images_cover_what_seeds_alone_do_not():
    """Seeds that agree on which images the arm is better at: many of them settle nothing."""
    rng = np.random.default_rng(0)
    images, spread = 300, math.sqrt(1 + 0.7**2 + 0.6**2)
    covered = {True: [], False: []}
    for _ in range(60):
        hard = rng.standard_normal(images)

        def right(n: float, hard: np.ndarray = hard) -> np.ndarray:
            liked = hard + 0.6 * rng.standard_normal(images) + 0.7 * rng.standard_normal((8, images))
            return (liked + norm.ppf(accuracy(n)) * spread > 0).astype(np.float64)

        of_sizes, arm = [right(n) for n in SIZES], right(283)
        points = [CurvePoint(n, tuple(each.mean(1)), "train") for n, each in zip(SIZES, of_sizes, strict=True)]
        arms = {"synthetic": arm.mean(1)}
        for over_images, given in [(True, (of_sizes, {"synthetic": arm})), (False, (None, None))]:
            found = learning_curve("real", points, 100, arms, 100, False, *given)
            covered[over_images].append(covers(found.exchange[0], 283))
            assert ("not over test images" in found.note) != over_images
    assert np.mean(covered[True]) >= 0.93
    assert np.mean(covered[False]) < 0.85, "the scenario tells the two apart"


def test_predictions_that_are_not_those_of_the_accuracies_are_refused():
    points = [CurvePoint(n, (0.5, 0.75), "train") for n in (50, 100)]
    right = np.array([[1.0, 0, 1, 0], [1, 1, 1, 0]])
    arms = {"synthetic": right.mean(1)}
    learning_curve("real", points, 100, arms, 100, False, [right, right], {"synthetic": right})
    with pytest.raises(DataError, match="aren't those"):
        learning_curve("real", points, 100, arms, 100, False, [right, 1 - right], {"synthetic": right})


def test_an_arm_equal_to_the_real_one_is_worth_its_images():
    measured = trained(np.random.default_rng(0), list(SIZES), 5)
    same = curve_of(SIZES, measured, measured[1]).exchange[0]
    assert same.factor == pytest.approx(1)
    assert (same.low, same.high) == pytest.approx((100, 100)), "seed by seed the same networks"
    assert not same.extrapolated
    factors = [studied(SIZES, 100, 5, np.random.default_rng(seed)).exchange[0].factor for seed in range(40)]
    assert np.median(factors) == pytest.approx(1, abs=0.1)


def test_the_same_seeds_are_drawn_at_every_size():
    """Luck that a seed has everywhere cancels; with one seed more in the arm there is nothing to pair."""
    luck = 0.02 * np.random.default_rng(1).standard_normal(6)
    luck -= luck.mean()
    measured = [accuracy(n) + luck for n in SIZES]
    paired = curve_of(SIZES, measured, accuracy(200) + luck).exchange[0]
    unpaired = curve_of(SIZES, measured, accuracy(200) + np.append(luck, 0)).exchange[0]
    assert paired.high / paired.low < 1.02
    assert (unpaired.high or math.inf) / (unpaired.low or 1) > 1.3


def test_between_sizes_far_apart_the_error_runs_along_the_power_law():
    found = curve_of((50, 200, 800), exact(50, 200, 800), exact(400)[0]).exchange[0]
    assert found.equivalent == pytest.approx(400, rel=0.01), "in log n it would be 440"
    two = curve_of((200, 800), exact(200, 800), exact(400)[0])
    assert 430 < two.exchange[0].equivalent < 480
    assert "overstated" in two.note
    assert (two.offset, two.scale, two.exponent, two.fit_error, two.next_gain) == (None,) * 5


@pytest.mark.parametrize(
    ("worth", "words"),
    [(1600, "lies above that of real images at 800, the largest size measured: worth more than 800"),
     (30, "lies below that of real images at 50, the smallest size measured: worth fewer than 50")],
)  # fmt: skip
def test_outside_the_measured_sizes_it_is_refused_unless_asked_for_and_then_marked(worth, words):
    refused = curve_of(SIZES, exact(*SIZES), exact(worth)[0]).exchange[0]
    assert (refused.equivalent, refused.factor, refused.extrapolated) == (None, None, False)
    assert (refused.low, refused.high) == (None, None)
    assert words in refused.note
    assert "wasn't asked for" in refused.note
    asked = curve_of(SIZES, exact(*SIZES), exact(worth)[0], extrapolate=True).exchange[0]
    assert asked.equivalent == pytest.approx(worth, rel=0.02)
    assert asked.factor == pytest.approx(worth / 100, rel=0.02)
    assert asked.extrapolated
    assert "extrapolated by the fit from 50 to 800" in asked.note


def test_an_end_that_leaves_the_sizes_is_open_and_says_which_way():
    values = exact(*SIZES)
    scattered = accuracy(600) + np.array([-0.02, 0.0, 0.02])[::-1]
    found = curve_of(SIZES, values, scattered).exchange[0]
    assert found.equivalent == pytest.approx(600, rel=0.02)
    assert 100 < found.low < 600
    assert found.high is None
    assert found.note.endswith("to more than 800")
    asked = curve_of(SIZES, values, scattered, extrapolate=True).exchange[0]
    assert not asked.extrapolated
    assert asked.low == pytest.approx(found.low)
    assert asked.high is None or asked.high > 800
    assert "ends by the fit" in asked.note
    low = curve_of(SIZES, values, accuracy(55) + np.array([0.05, 0.0, -0.05])).exchange[0]
    assert low.low is None
    assert "interval fewer than 50 to" in low.note


def test_no_number_of_real_images_reaches_beyond_the_limit_of_the_fit():
    found = curve_of(SIZES, exact(*SIZES), np.array([0.96, 0.97, 0.98]), extrapolate=True).exchange[0]
    assert (found.equivalent, found.factor, found.extrapolated) == (None, None, True)
    assert "no number of real images would reach its accuracy of 97.00 by the fit, whose limit is 95.0" in found.note


def test_two_sizes_cannot_be_extrapolated():
    found = curve_of((50, 100), exact(50, 100), exact(400)[0], extrapolate=True).exchange[0]
    assert (found.equivalent, found.extrapolated) == (None, False)
    assert "needs at least 3 sizes" in found.note


def test_a_single_size_is_worth_itself_or_refused():
    equal = curve_of((100,), exact(100), exact(100)[0])
    assert (equal.exchange[0].equivalent, equal.exchange[0].factor) == (100, 1)
    better = curve_of((100,), exact(100), exact(200)[0])
    assert better.exchange[0].equivalent is None
    assert "1 size measured" in better.note


def test_a_single_seed_has_no_intervals():
    found = curve_of(SIZES, [np.array([accuracy(n)]) for n in SIZES], np.array([accuracy(200)]))
    assert found.exchange[0].equivalent == pytest.approx(200)
    assert (found.exchange[0].low, found.exchange[0].high, found.next_gain) == (None, None, None)
    assert "single seed" in found.note
    assert "single seed" in found.exchange[0].note


def test_three_sizes_say_that_the_fit_is_exact():
    found = curve_of(SIZES[:3], exact(*SIZES[:3]), exact(150)[0])
    assert found.fit_error == pytest.approx(0, abs=1e-3)
    assert "3 sizes for 3 parameters" in found.note
    assert "beyond" not in found.note
    assert "beyond the largest size measured, 200" in curve_of(SIZES[:3], exact(*SIZES[:3]), exact(150)[0], num_train=200).note


def test_a_size_that_is_worse_than_the_one_before_does_not_break_the_order():
    values = exact(50, 200, 100, 400)  # 100 and 200 exchanged
    found = curve_of((50, 100, 200, 400), values, exact(300)[0])
    assert 200 < found.exchange[0].equivalent < 400
    mean = (values[1] + values[2]) / 2
    pooled = [curve_of((50, 100, 200, 400), values, mean + more).exchange[0].equivalent for more in (0, 0.001)]
    assert pooled[0] == pytest.approx(100), "both are worth their mean, which 100 images reach first"
    assert 200 < pooled[1] < 210
    assert all(isinstance(each, float) and math.isfinite(each) for each in (found.offset, found.scale, *found.next_gain))


def test_the_curve_is_the_same_each_time_and_finite_at_its_edges():
    given = SIZES, trained(np.random.default_rng(0), list(SIZES), 5), trained(np.random.default_rng(1), [200], 5)[0]
    assert curve_of(*given) == curve_of(*given)
    for level in (0.0, 0.1, 1.0):  # nothing learnt, chance, everything
        flat = [np.full(3, level)] * 5
        found = curve_of(SIZES, flat, np.full(3, level), extrapolate=True)
        assert found.exchange[0].equivalent == 50, "reached first at the smallest"
        assert found.next_gain == pytest.approx((0, 0, 0))


# Which class


def test_the_class_that_still_learns_is_the_one_that_needs_more():
    rng = np.random.default_rng(0)
    by_class = [(0.02, 0.1, 0.5), (0.05, 4.0, 0.5), (0.4, 0.1, 1.0)]
    exact_recalls = np.array([[[accuracy(n, law) for law in by_class]] for n in SIZES])
    recalls = np.repeat(exact_recalls, 5, axis=1) + 0.005 * rng.standard_normal((5, 5, 3))
    labels = np.repeat(np.arange(3), 5000)
    place = (np.arange(15000) % 5000 + 0.5) / 5000  # what is hard at one size is hard at all
    correct = [(place < of_size[:, labels]).astype(np.float64) for of_size in recalls]
    found = class_needs(SIZES, correct, labels, 3, 400, 200)
    truth = [100 * (accuracy(600, law) - accuracy(400, law)) for law in by_class]
    assert [each[0] for each in found] == pytest.approx(truth, abs=0.5)
    assert np.argmax([each[0] for each in found]) == 1
    assert all(low <= gain <= high for gain, low, high in found)
    assert found[1][1] > found[0][2], "told apart"
    assert class_needs(SIZES, correct, labels, 3, 400, 200) == found


def test_a_class_that_the_test_set_has_not_needs_nothing_known():
    labels = np.zeros(500, np.int64)
    correct = [np.tile((np.arange(500) < share * 500).astype(np.float64), (3, 1)) for share in (0.5, 0.6)]
    found = class_needs((100, 200), correct, labels, 2, 200, 200)
    assert found[1] is None
    assert found[0] is not None
    gain, low, high = found[0]
    assert gain == pytest.approx(10), "a straight line in log n"
    half = 100 * 1.96 * (0.1 * 0.9 / 500) ** 0.5  # a tenth of the images are new; no seed differs
    assert (low, high) == pytest.approx((10 - half, 10 + half), abs=0.4)
    with pytest.raises(DataError, match="at least 2 of each"):
        class_needs((100,), correct[:1], labels, 2, 200, 200)
