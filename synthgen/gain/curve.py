"""The learning curve of real images, and how many of them synthetic images are worth.

Inside the measured sizes the curve is what was measured: the means, made monotone, joined along n ** -exponent. The power
law is asked only for that exponent, for what lies beyond the sizes, and for what the next images would bring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats as distributions

from synthgen.errors import DataError
from synthgen.gain.stats import bootstrap_counts, cluster_sums, members_of, num_clusters
from synthgen.randomness import stream
from synthgen.shapes import Float, Int64
from synthgen.types import CurvePoint, Exchange, LearningCurve

RESAMPLES = 1000
"""Of seeds (and images): each takes a fit, so fewer than for a difference of means."""

EXPONENTS = (0.01, 2.0)
"""Range of the fit's exponent; those measured lie between 0.07 and 0.35 (Hestness et al. 2017), theory's at 0.5 and 1."""

COARSE, FINE = 48, 9
"""Exponents tried over the whole range, and then around the best, ..."""
REFINEMENTS = 6
"""... which is narrowed down by 4 this many times, to 3e-5 of the exponent."""

EQUAL = 1e-12
"""Accuracies that differ by less are the same to rounding."""


@dataclass(frozen=True)
class Fit:
    """error(n) = offset + scale * n ** -exponent.

    Attributes:
        offset, scale, exponent: of the error as a share; the first two at least 0, the last in `EXPONENTS`.
        error: root mean square residual of the mean accuracies, in points; 0 or nearly so where there are 3 sizes.
    """

    offset: float
    scale: float
    exponent: float
    error: float

    def accuracy(self, num_real: int | float) -> float:
        """What the curve says at a size, as a share."""
        return 1.0 - self.offset - self.scale * float(num_real) ** -self.exponent


def fit(sizes: Sequence[int], accuracies: Sequence[Float[np.ndarray, " _"]]) -> Fit:
    """The power law with offset that is nearest to the mean accuracies, by weighted least squares (Viering & Loog 2021).

    Given the exponent the other two are linear, so they are solved for exactly (with both at least 0) and the exponent alone
    is searched (variable projection, Golub & Pereyra 1973): no start to choose, no local minimum to end in. A mean
    weighs 1 / its variance; each size's variance is averaged with that of all sizes, for few seeds know theirs badly.

    Args:
        sizes: numbers of real images, 3 or more different ones in ascending order.
        accuracies: of each size's seeds, as shares.

    Raises:
        DataError: fewer than 3 sizes (the curve has 3 parameters), not ascending, or without an accuracy.
    """
    _check_sizes(sizes, accuracies)
    if len(sizes) < 3:
        raise DataError(f"{len(sizes)} sizes; a power law with offset needs at least 3")
    means = np.array([np.mean(values) for values in accuracies])
    found = _power_laws(np.array(sizes, np.float64), 1.0 - means[None], _weights(accuracies))[0]
    residuals = 1.0 - found[0] - found[1] * np.array(sizes, np.float64) ** -found[2] - means
    offset, scale, exponent = map(float, found)
    return Fit(offset, scale, exponent, 100.0 * float(np.sqrt(np.mean(residuals**2))))


def learning_curve(
    recipe: str,
    points: Sequence[CurvePoint],
    num_train: int,
    arms: Mapping[str, Float[np.ndarray, " _"]],
    next_images: int,
    extrapolate: bool = False,
    points_correct: Sequence[Float[np.ndarray, "_ n"]] | None = None,
    arms_correct: Mapping[str, Float[np.ndarray, "_ n"]] | None = None,
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> LearningCurve:
    """The curve through the points, the exchange rate of every synthetic arm, and what the next real images would bring.

    An arm's equivalent n' is where the real-only curve first reaches its mean accuracy. Between two measured sizes the
    error runs linearly in n ** -exponent of the fit, exact for any power law with offset (in log n, without a fit: that
    overstates n' where the curve flattens). Beyond them n' is refused, or, where asked for, the fit's and marked.

    The intervals are percentiles over resampled seeds: place j of every size and every arm of as many seeds is the same
    seed, whose networks share subsets and initial weights, so the same seeds are drawn everywhere. Deviations of a
    resampled mean are widened to t(s - 1) / z * sqrt(s / (s - 1)): the interval of a mean is then Student's, where the
    percentiles of 5 resampled seeds would cover about 85% (cf. Hesterberg 2015). With `points_correct` and
    `arms_correct` test images (whole clusters of them, widened like seeds) are resampled too, the same for all; without,
    the interval is over seeds alone. (Simulated, 5 seeds and 300 or 900 test images: these cover 97-100% of the truths,
    those over seeds alone 84-94%, least where an arm is better on some images and worse on others.) With 2 seeds they are
    too narrow: 78-90%.

    Args:
        recipe: what was trained at each size.
        points: in ascending order of size.
        num_train: real images that the arms had.
        arms: name -> test accuracy of each seed, as a share.
        next_images: how many more real images to ask about.
        extrapolate: answer outside the measured sizes too, by the fit.
        points_correct, arms_correct: 1 where the network of seed s is right on test image n, else 0; their means are the
            accuracies given.
        clusters: of each test image, see `stats.paired_interval`; None where all are independent.

    Raises:
        DataError: no point, sizes that don't ascend, a point or an arm without an accuracy, or other correct ones.

    Cost: 0.03 s for 5 sizes and 10 seeds, and 1 ms an arm; with 10,000 test images 0.2 s.
    """
    sizes = [point.num_real for point in points]
    measured = [np.array(point.accuracies, np.float64) for point in points]
    _check_sizes(sizes, [*measured, *arms.values()])
    blocks = [*measured, *(np.asarray(values, np.float64) for values in arms.values())]
    correct = None
    if points_correct is not None and arms_correct is not None:
        correct = [*points_correct, *(arms_correct[name] for name in arms)]
    means = np.array([values.mean() for values in blocks])
    resampled = _resampled_means(blocks, correct, clusters)
    x, weights, m = np.array(sizes, np.float64), _weights(measured), len(points)
    # row 0 is what was measured, the others are resamples
    all_means = means[None] if resampled is None else np.concatenate([means[None], resampled])
    laws = _power_laws(x, 1.0 - all_means[:, :m], weights) if m >= 3 else None
    counts = np.array([len(values) for values in measured], np.float64)
    monotone = _isotonic(all_means[:, :m], counts)
    exchange = []
    for place, name in enumerate(arms, start=m):
        solved = _solve(x, monotone, all_means[:, place], laws, extrapolate)
        exchange.append(_exchange(name, num_train, sizes, solved, all_means[0, place], laws, extrapolate))
    following = None
    if laws is not None and resampled is not None:
        gains = 100.0 * _gain(laws, num_train, next_images)
        following = (float(gains[0]), *_limits(gains[1:]))
    best = fit(sizes, measured) if m >= 3 else None
    note = _curve_note(sizes, measured, num_train + next_images, resampled is not None, correct is not None)
    return LearningCurve(
        recipe,
        tuple(points),
        offset=best.offset if best else None,
        scale=best.scale if best else None,
        exponent=best.exponent if best else None,
        fit_error=best.error if best else None,
        next_images=next_images,
        next_gain=following,
        exchange=tuple(exchange),
        note=note,
    )


def class_needs(
    sizes: Sequence[int],
    correct: Sequence[Float[np.ndarray, "s n"]],
    labels: Int64[np.ndarray, " n"],
    num_classes: int,
    num_train: int,
    next_images: int,
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> tuple[tuple[float, float, float] | None, ...]:
    """Points of recall that each class would gain from the next real images, with 95% intervals: where collecting pays.

    A power law is fitted to each class's recalls (a straight line in log n for 2 sizes), and the intervals are over
    resampled seeds and test images of the class, as in `learning_curve`. The mix of classes is taken to stay as it is:
    `next_images` counts those of all classes. Figures of single classes are noisy, for a class's test images are few, and
    never below 0, for the curves don't fall.

    Args:
        sizes: numbers of real images (of all classes), in ascending order.
        correct: of each size, 1 where the network of seed s is right on test image n, else 0.
        labels: of the test images. A class that has fewer than 2 of them (2 clusters) gets None.
        num_classes: classes that there are.
        num_train: real images that there are.
        next_images: how many more.
        clusters: as in `learning_curve`.

    Raises:
        DataError: fewer than 2 sizes or 2 seeds, or sizes that don't ascend.
    """
    _check_sizes(sizes, correct)
    seeds = min(len(right) for right in correct)
    if len(sizes) < 2 or seeds < 2:
        raise DataError(f"{len(sizes)} sizes and {seeds} seeds; what a class needs takes at least 2 of each")
    x = np.array(sizes, np.float64)
    found: list[tuple[float, float, float] | None] = []
    for k in range(num_classes):
        own = np.flatnonzero(labels == k)
        within = None if clusters is None else clusters[own]
        if num_clusters(within, len(own)) < 2:
            found.append(None)
            continue
        right = [each[:, own] for each in correct]
        of_class = [each.mean(1) for each in right]
        means, resampled = np.array([values.mean() for values in of_class]), _resampled_means(of_class, right, within)
        assert resampled is not None
        errors, weights = 1.0 - np.concatenate([means[None], resampled]), _weights(of_class)
        if len(sizes) == 2:
            slope = np.maximum(0.0, errors[:, 0] - errors[:, 1]) / math.log(x[1] / x[0])
            gains = 100.0 * np.minimum(slope * math.log1p(next_images / num_train), 1.0)
        else:
            gains = 100.0 * _gain(_power_laws(x, errors, weights), num_train, next_images)
        found.append((float(gains[0]), *_limits(gains[1:])))
    return tuple(found)


# The fit


def _power_laws(
    sizes: Float[np.ndarray, " m"], errors: Float[np.ndarray, "b m"], weights: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "b 3"]:
    """Offset, scale and exponent of the best power law of each row of errors."""
    low, high = np.full(len(errors), math.log(EXPONENTS[0])), np.full(len(errors), math.log(EXPONENTS[1]))
    num = COARSE
    for _ in range(1 + REFINEMENTS):
        tried = np.exp(np.linspace(low, high, num, axis=1))
        best = _given_exponent(sizes, errors, weights, tried)[2].argmin(1)
        step = (high - low) / (num - 1)
        centre = low + step * best
        low = np.maximum(centre - step, math.log(EXPONENTS[0]))
        high = np.minimum(centre + step, math.log(EXPONENTS[1]))
        num = FINE
    exponent = np.exp(centre)
    offset, scale, _ = _given_exponent(sizes, errors, weights, exponent[:, None])
    return np.stack([offset[:, 0], scale[:, 0], exponent], axis=1)


def _given_exponent(
    sizes: Float[np.ndarray, " m"],
    errors: Float[np.ndarray, "b m"],
    weights: Float[np.ndarray, " m"],
    exponents: Float[np.ndarray, "b c"],
) -> tuple[Float[np.ndarray, "b c"], Float[np.ndarray, "b c"], Float[np.ndarray, "b c"]]:
    """Offset, scale (both at least 0) and weighted squared residual of the best line in u = n ** -exponent."""
    w = weights / weights.sum()
    # relative to the smallest size: u is 1 there, so no exponent makes it vanish
    u = np.exp(-exponents[..., None] * np.log(sizes / sizes[0]))
    y = errors[:, None, :]
    mean_u, mean_y = (w * u).sum(-1), (w * y).sum(-1)
    spread, shared = (w * u**2).sum(-1) - mean_u**2, (w * u * y).sum(-1) - mean_u * mean_y
    slope = np.maximum(0.0, shared / np.maximum(spread, 1e-300))
    offset = mean_y - slope * mean_u
    through_origin = np.maximum(0.0, (w * u * y).sum(-1) / (w * u**2).sum(-1))
    slope, offset = np.where(offset < 0, through_origin, slope), np.maximum(0.0, offset)
    residual = (w * (y - offset[..., None] - slope[..., None] * u) ** 2).sum(-1)
    return offset, slope * sizes[0] ** exponents, residual


def _weights(accuracies: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " m"]:
    """1 / variance of each mean; equal ones where the seeds say nothing about it."""
    counts = np.array([len(values) for values in accuracies], np.float64)
    sums = np.array([((values - values.mean()) ** 2).sum() for values in accuracies])
    if sums.sum() <= EQUAL:
        return counts
    pooled = sums.sum() / (counts - 1).sum()
    own = np.where(counts > 1, sums / np.maximum(counts - 1, 1), pooled)
    return counts / ((own + pooled) / 2)


def _gain(laws: Float[np.ndarray, "b 3"], num_train: int, next_images: int) -> Float[np.ndarray, " b"]:
    """Error that the next images take away."""
    scale, exponent = laws[:, 1], laws[:, 2]
    return scale * (float(num_train) ** -exponent - float(num_train + next_images) ** -exponent)


# The exchange rate


def _isotonic(means: Float[np.ndarray, "b m"], counts: Float[np.ndarray, " m"]) -> Float[np.ndarray, "b m"]:
    """The nearest ascending means of each row, by the min-max formula: max over j <= i of min over k >= i of mean(j..k)."""
    m = means.shape[1]
    sums = np.concatenate([np.zeros((len(means), 1)), np.cumsum(means * counts, axis=1)], axis=1)
    totals = np.concatenate([[0.0], np.cumsum(counts)])
    blocks = {(j, k): (sums[:, k + 1] - sums[:, j]) / (totals[k + 1] - totals[j]) for j in range(m) for k in range(j, m)}
    rows = []
    for i in range(m):
        least = [np.min([blocks[j, k] for k in range(i, m)], axis=0) for j in range(i + 1)]
        rows.append(np.max(least, axis=0))
    return np.stack(rows, axis=1)


def _solve(
    sizes: Float[np.ndarray, " m"],
    monotone: Float[np.ndarray, "b m"],
    reached: Float[np.ndarray, " b"],
    laws: Float[np.ndarray, "b 3"] | None,
    extrapolate: bool,
) -> Float[np.ndarray, " b"]:
    """n' at which each row's curve first reaches its accuracy; 0 for below the smallest size, infinity for never."""
    b, m = monotone.shape
    before = (monotone < reached[:, None] - EQUAL).sum(1)
    rows, right = np.arange(b), np.clip(before, 1, max(1, m - 1))
    solved = np.where(before == 0, sizes[0], np.inf)
    if m > 1:
        lower, upper = monotone[rows, right - 1], monotone[rows, right]
        share = np.clip((reached - lower) / np.maximum(upper - lower, EQUAL), 0.0, 1.0)
        exponent = np.full(b, 1e-6) if laws is None else laws[:, 2]
        ratio = np.expm1(-exponent * np.log(sizes[right] / sizes[right - 1]))
        between = sizes[right - 1] * np.exp(-np.log1p(share * ratio) / exponent)
        solved = np.where((before > 0) & (before < m), between, solved)
    below = reached < monotone[:, 0] - EQUAL
    solved = np.where(below, 0.0, solved)
    if extrapolate and laws is not None:
        room = 1.0 - reached - laws[:, 0]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            by_fit = np.where(room > 0, (laws[:, 1] / room) ** (1 / laws[:, 2]), np.inf)
        # the fit doesn't run through the last point: it may not lead back into the sizes
        solved = np.where(below, np.minimum(by_fit, sizes[0]), solved)
        solved = np.where(before == m, np.maximum(by_fit, sizes[-1]), solved)
    return solved


def _exchange(
    arm: str,
    num_real: int,
    sizes: list[int],
    solved: Float[np.ndarray, " b"],
    reached: float,
    laws: Float[np.ndarray, "b 3"] | None,
    extrapolate: bool,
) -> Exchange:
    """The answer in words: row 0 of what was solved is the measured one, the others are resamples."""
    smallest, largest = sizes[0], sizes[-1]
    value = float(solved[0])
    outside = not smallest <= value <= largest
    by_fit = extrapolate and laws is not None
    equivalent = value if math.isfinite(value) and value > 0 else None
    low, high, spread = None, None, ""
    if len(solved) > 1:
        low, high = (end if 0 < end < math.inf else None for end in _limits(solved[1:]))
        spread = f"; 95% interval {_end(low, solved[1:], sizes, 0)} to {_end(high, solved[1:], sizes, 1)}"
    else:
        spread = "; no interval from a single seed"
    factor = equivalent and equivalent / num_real
    if equivalent is None and by_fit:
        assert laws is not None
        note = (
            f"no number of real images would reach its accuracy of {100 * reached:.2f} by the fit, whose limit is "
            f"{100 * (1 - laws[0, 0]):.2f}{spread}"
        )
    elif equivalent is None:
        above = value > 0
        side, edge = ("above", largest) if above else ("below", smallest)
        asked = "the fit, which needs at least 3 sizes" if extrapolate else "extrapolation, which wasn't asked for"
        note = (
            f"its accuracy of {100 * reached:.2f} lies {side} that of real images at {edge}, the "
            f"{'largest' if above else 'smallest'} size measured: worth {'more' if above else 'fewer'} than {edge}, and how "
            f"many takes {asked}{spread}"
        )
    else:
        kind = f", extrapolated by the fit from {smallest} to {largest} images" if outside else ""
        note = f"as accurate as about {equivalent:.0f} real images alone{kind}{spread}"
        if by_fit and not outside and any(end is None or not smallest <= end <= largest for end in (low, high)):
            note += " (its ends by the fit)"
    return Exchange(arm, num_real, equivalent, low, high, factor, by_fit and outside, note)


def _end(end: float | None, solved: Float[np.ndarray, " b"], sizes: list[int], side: int) -> str:
    """An end of the interval in words; where it has left the sizes, which way."""
    if end is not None:
        return f"{end:.0f}"
    return f"fewer than {sizes[0]}" if _limits(solved)[side] <= 0 else f"more than {sizes[-1]}"


def _curve_note(
    sizes: list[int], measured: list[Float[np.ndarray, " _"]], following: int, resampled: bool, over_images: bool
) -> str:
    limits = []
    if len(sizes) < 3:
        overstated = ", and n' is overstated where the curve flattens between them" if len(sizes) == 2 else ""
        measured_sizes = f"{len(sizes)} size{'s' * (len(sizes) > 1)} measured"
        limits.append(f"{measured_sizes}, and a power law with offset needs 3: no fit{overstated}")
    elif len(sizes) == 3:
        limits.append("3 sizes for 3 parameters: the fit runs through them and its error says nothing")
    if len(sizes) >= 3 and following > sizes[-1]:
        limits.append(f"the next images lie beyond the largest size measured, {sizes[-1]}: by the fit alone")
    if not resampled:
        limits.append("a size or an arm has a single seed: no intervals")
    else:
        fewest = min(len(values) for values in measured)
        kind = "seeds and test images" if over_images else "seeds, not over test images"
        limits.append(f"intervals over {kind} ({fewest} seeds a size)")
    return "; ".join(limits)


# The bootstrap


def _resampled_means(
    blocks: list[Float[np.ndarray, " _"]],
    correct: list[Float[np.ndarray, "_ n"]] | None,
    clusters: Int64[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "b _"] | None:
    """Mean of each block on each resample of its seeds (and of the images or clusters, if it is known who is right on which).

    Blocks of as many seeds share the drawn seeds, all share the drawn images. None where a block has a single seed.
    """
    if any(len(values) < 2 for values in blocks):
        return None
    drawn = {}
    for count in sorted({len(values) for values in blocks}):
        drawn[count] = bootstrap_counts(stream(0, "gain/curve/seeds", count), count, RESAMPLES).astype(np.float64) / count
    columns = [values.mean() + _wider(len(values)) * (drawn[len(values)] - 1 / len(values)) @ values for values in blocks]
    means = np.stack(columns, axis=1)
    if correct is not None:
        _check_correct(blocks, correct)
        of_images = np.stack([right.mean(0) for right in correct], axis=1)
        means += _moved(of_images, members_of(clusters, len(of_images)))
    return np.clip(means, 0.0, 1.0)


def _wider(count: int) -> float:
    """A resample's variance is short by (s - 1) / s, and its percentiles are the normal's, not Student's."""
    return float(distributions.t.ppf(0.975, count - 1) / distributions.norm.ppf(0.975) * math.sqrt(count / (count - 1)))


def _moved(of_images: Float[np.ndarray, "n b"], members: Int64[np.ndarray, " n"] | None) -> Float[np.ndarray, "r b"]:
    """Mean over resampled images, or clusters, minus that over all."""
    images = len(of_images)
    sums = of_images if members is None else cluster_sums((of_images - of_images.mean(0)).T, members).T
    weights = bootstrap_counts(stream(0, "gain/curve/images", 0), len(sums), RESAMPLES)
    moved = []
    for rows in np.array_split(weights, 1 + len(sums) * RESAMPLES // 2**21):
        if members is None:
            moved.append((rows / images - 1 / images) @ of_images)
        else:  # a mean over as many images as the drawn clusters have
            moved.append(_wider(len(sums)) * (rows @ sums) / (rows @ np.bincount(members))[:, None])
    return np.concatenate(moved)


def _limits(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """2.5% and 97.5% of the values; not interpolated, since some may be infinite."""
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def _check_sizes(sizes: Sequence[int], accuracies: Sequence[np.ndarray]) -> None:
    if not sizes or any(b <= a for a, b in pairwise(sizes)) or sizes[0] < 1:
        raise DataError(f"sizes {list(sizes)}: the points of a learning curve must be of ascending sizes, 1 or more")
    if len(accuracies) < len(sizes) or any(len(values) == 0 for values in accuracies):
        raise DataError(f"{len(sizes)} sizes, some without an accuracy")


def _check_correct(blocks: list[Float[np.ndarray, " _"]], correct: list[Float[np.ndarray, "_ n"]]) -> None:
    for values, right in zip(blocks, correct, strict=True):
        if len(values) != len(right) or not np.allclose(values, right.mean(1)):
            raise DataError(
                f"accuracies {np.round(values, 4)} aren't those of the given predictions, {np.round(right.mean(1), 4)}"
            )
