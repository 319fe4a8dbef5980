"""What holds of every metric whatever the features: order, tiles, precision, symmetry, rotation, scale, duplication."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen.errors import DataError
from synthgen.metrics import diversity, frechet, kernel, neighbours, subsets
from synthgen.metrics.diversity import vendi
from synthgen.metrics.frechet import Moments, frechet_distance, frechet_distance_of
from synthgen.metrics.infinity import fid_infinity
from synthgen.metrics.kernel import cmmd, kid, kid_subsets, mmd_rbf
from synthgen.metrics.prdc import prdc

few = settings(max_examples=12, deadline=None, derandomize=True)

EVERY: dict[str, Callable[..., tuple[float, ...]]] = {
    "fid": lambda x, y: (frechet_distance(x, y),),
    "fid of moments": lambda x, y: (frechet_distance_of(Moments.of(x), Moments.of(y)),),
    "kid": lambda x, y: (kid(x, y),),
    "kid of degree 4": lambda x, y: (kid(x, y, degree=4, coef=0.5),),
    "kid of subsets": lambda x, y: kid_subsets(x, y, 3, 20),
    "rbf": lambda x, y: (mmd_rbf(x, y),),
    "biased rbf": lambda x, y: (mmd_rbf(x, y, 2.0, unbiased=False),),
    "cmmd": lambda x, y: (cmmd(x, y),),
    "prdc": lambda x, y: tuple(prdc(x, y, 3)),
    "fid infinity": lambda x, y: tuple(fid_infinity(x, y)),
    "vendi": lambda x, y: (vendi(y),),
    "vendi of order 2": lambda x, y: (vendi(y, 2.0),),
}


class Sets(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    rng: np.random.Generator


@st.composite
def feature_sets(draw: st.DrawFn) -> Sets:
    """Two sets of 40 to 90 correlated rows in 2 to 6 dimensions, near or far from each other and from 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    n, m, d = draw(st.integers(40, 90)), draw(st.integers(40, 90)), draw(st.integers(2, 6))
    offset, apart = draw(st.sampled_from([0.0, 1.0, 30.0])), draw(st.sampled_from([0.0, 0.3, 3.0]))
    mix = rng.normal(size=(d, d)) + 2 * np.eye(d)
    return Sets(rng.normal(size=(n, d)) @ mix + offset, rng.normal(size=(m, d)) @ mix + offset + apart, rng)


def close(name: str, found: tuple[float, ...], expected: tuple[float, ...], like: Sets, rel: float = 1e-7) -> None:
    """To `rel` of the value, or of a small part of what it is the difference of: squares for FID, their cubes for KID."""
    square = max(1.0, float(np.square(np.concatenate([like.x, like.y])).mean()))
    size = 1e-4 * square**3 if "kid" in name else square if "fid" in name else 1.0
    assert found == pytest.approx(expected, rel=rel, abs=1e-2 * rel * size), name


# Rows and how they are computed


@pytest.mark.parametrize("name", EVERY)
@given(sets=feature_sets())
@few
def test_the_order_of_the_rows_does_not_matter(name: str, sets: Sets) -> None:
    x, y, rng = sets
    close(name, EVERY[name](x[rng.permutation(len(x))], y[rng.permutation(len(y))]), EVERY[name](x, y), sets)


@contextmanager
def in_tiles_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (diversity, frechet, kernel, subsets):
            patch.setattr(module, "CHUNK", size)
        patch.setattr(frechet, "BLOCK", max(1, size // 8))
        patch.setitem(neighbours.TILE, "cpu", max(size, 32))
        yield


@pytest.mark.parametrize("name", EVERY)
@given(sets=feature_sets(), size=st.integers(2, 50))
@few
def test_the_size_of_the_tiles_does_not_matter(name: str, sets: Sets, size: int) -> None:
    expected = EVERY[name](sets.x, sets.y)
    with in_tiles_of(size):
        close(name, EVERY[name](sets.x, sets.y), expected, sets)


@pytest.mark.parametrize("name", EVERY)
@given(sets=feature_sets())
@few
def test_float32_and_float64_agree(name: str, sets: Sets) -> None:
    x, y = (z.astype(np.float32) for z in sets[:2])
    wide = EVERY[name](x.astype(np.float64), y.astype(np.float64))
    close(name, EVERY[name](x, y), wide, sets, rel=1e-4)
    assert EVERY[name](torch.from_numpy(x), torch.from_numpy(y)) == EVERY[name](x, y)


@pytest.mark.parametrize("name", EVERY)
@given(sets=feature_sets())
@few
def test_the_same_call_gives_the_same_bytes(name: str, sets: Sets) -> None:
    before = sets.x.copy(), sets.y.copy()
    assert EVERY[name](sets.x, sets.y) == EVERY[name](sets.x, sets.y)
    assert (sets.x == before[0]).all()  # and leaves the features as they were
    assert (sets.y == before[1]).all()


@given(sets=feature_sets(), cut=st.integers(1, 39))
@few
def test_moments_add_up(sets: Sets, cut: int) -> None:
    """A set in two parts, merged in either order, is the set."""
    x, y, _ = sets
    parts = Moments.of(x[:cut]), Moments.of(x[cut:])
    whole = frechet_distance(x, y)
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        assert merged.n == len(x)
        assert frechet_distance_of(merged, Moments.of(y)) == pytest.approx(whole, rel=1e-8)


# Both sets


@pytest.mark.parametrize("name", ["fid", "fid of moments", "kid", "kid of degree 4", "biased rbf", "cmmd"])
@given(sets=feature_sets())
@few
def test_a_distance_is_symmetric(name: str, sets: Sets) -> None:
    close(name, EVERY[name](sets.y, sets.x), EVERY[name](sets.x, sets.y), sets, rel=1e-9)


@given(sets=feature_sets())
@few
def test_precision_is_recall_with_the_sets_exchanged(sets: Sets) -> None:
    assert prdc(sets.x, sets.y).precision == prdc(sets.y, sets.x).recall


@given(sets=feature_sets())
@few
def test_a_set_has_no_distance_from_itself(sets: Sets) -> None:
    x = sets.x
    scale = float(np.square(x).sum(axis=1).mean())
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * scale)
    assert mmd_rbf(x, x, unbiased=False) == pytest.approx(0, abs=1e-12)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert kid(x, x) <= 0  # the pairs of a row with itself are in one term alone
    assert mmd_rbf(x, x) <= 0
    assert tuple(prdc(x, x))[:2] == (1, 1)
    assert prdc(x, x).coverage == 1


@given(sets=feature_sets(), shift=st.floats(-50, 50))
@few
def test_fid_of_a_shifted_set_is_the_square_of_the_shift(sets: Sets, shift: float) -> None:
    scale = float(np.square(sets.x).sum(axis=1).mean()) + shift**2
    assert frechet_distance(sets.x, sets.x + shift) == pytest.approx(sets.x.shape[1] * shift**2, abs=1e-9 * scale)


# Geometry


@pytest.mark.parametrize("name", ["fid", "fid of moments", "rbf", "biased rbf", "prdc"])
@given(sets=feature_sets())
@few
def test_rotations_and_shifts_do_not_matter(name: str, sets: Sets) -> None:
    x, y, rng = sets
    d = x.shape[1]
    rotation, shift = np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=d)
    close(name, EVERY[name](x @ rotation + shift, y @ rotation + shift), EVERY[name](x, y), sets)


@pytest.mark.parametrize("name", ["kid", "kid of degree 4", "cmmd", "vendi", "vendi of order 2"])
@given(sets=feature_sets())
@few
def test_rotations_do_not_matter_to_inner_products(name: str, sets: Sets) -> None:
    """A shift does: these are no functions of distances."""
    x, y, rng = sets
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1],) * 2))[0]
    close(name, EVERY[name](x @ rotation, y @ rotation), EVERY[name](x, y), sets)
    assert EVERY[name](x + 1, y + 1) != pytest.approx(EVERY[name](x, y), rel=1e-6)


@given(sets=feature_sets(), scale=st.floats(0.01, 100))
@few
def test_scale(sets: Sets, scale: float) -> None:
    """FID goes with its square; prdc, a Gaussian kernel whose bandwidth scales too, and directions don't see it."""
    x, y, _ = sets
    assert frechet_distance(scale * x, scale * y) == pytest.approx(scale**2 * frechet_distance(x, y), rel=1e-8, abs=1e-10)
    assert tuple(prdc(scale * x, scale * y)) == tuple(prdc(x, y))
    close("rbf", (mmd_rbf(scale * x, scale * y),), (mmd_rbf(x, y),), sets)
    close("kid", (kid(scale * x, scale * y, gamma=0.1 / scale**2),), (kid(x, y, gamma=0.1),), sets)
    close("cmmd", (cmmd(scale * x, y), vendi(scale * y)), (cmmd(x, y), vendi(y)), sets)


# Duplication: each row twice


def twice(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x])


@pytest.mark.parametrize("name", ["biased rbf", "cmmd", "vendi", "vendi of order 2"])
@given(sets=feature_sets())
@few
def test_means_over_all_pairs_do_not_see_duplication(name: str, sets: Sets) -> None:
    close(name, EVERY[name](twice(sets.x), twice(sets.y)), EVERY[name](sets.x, sets.y), sets)


@given(sets=feature_sets())
@few
def test_duplication_changes_fid_by_its_divisor_alone(sets: Sets) -> None:
    """Covariances over n - 1: those of 2n rows are (2n - 2) / (2n - 1) of what they were, the means stay."""
    n = min(len(sets.x), len(sets.y))
    x, y = sets.x[:n], sets.y[:n]
    means = float(np.square(x.mean(axis=0) - y.mean(axis=0)).sum())
    expected = means + (frechet_distance(x, y) - means) * (2 * n - 2) / (2 * n - 1)
    assert frechet_distance(twice(x), twice(y)) == pytest.approx(expected, rel=1e-8)


@given(sets=feature_sets())
@few
def test_duplication_doubles_the_neighbours_of_prdc(sets: Sets) -> None:
    """The k-th neighbour becomes the 2k-th (own copy, then each neighbour twice), and balls hold twice as many."""
    assert tuple(prdc(twice(sets.x), twice(sets.y), 6)) == pytest.approx(tuple(prdc(sets.x, sets.y, 3)), abs=1e-12)


@given(sets=feature_sets())
@few
def test_duplication_inside_one_set_is_not_fidelity(sets: Sets) -> None:
    """Half of the synthetic set, twice, costs diversity, and never gains precision of its own."""
    x, y, _ = sets
    half = y[: len(y) // 2]
    assert vendi(twice(half)) == pytest.approx(vendi(half), rel=1e-9)
    assert prdc(x, twice(half)).coverage == prdc(x, half).coverage


# Scenarios, over many draws


@given(seed=st.integers(0, 2**16), modes=st.integers(4, 8), kept=st.integers(1, 2))
@few
def test_collapse_and_dropped_modes_cost_recall_and_coverage_and_not_precision(seed: int, modes: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    centres = 12 * np.eye(8)[:modes]
    x = centres[np.arange(400) % modes] + rng.normal(size=(400, 8))
    whole = centres[np.arange(400) % modes] + rng.normal(size=(400, 8))
    collapsed = centres[np.arange(400) % kept] + 0.3 * rng.normal(size=(400, 8))
    dropped = centres[np.arange(400) % (modes - 1)] + rng.normal(size=(400, 8))
    best, found, without = prdc(x, whole), prdc(x, collapsed), prdc(x, dropped)
    assert found.precision > 0.95
    assert found.recall < 0.1
    assert found.coverage < kept / modes + 0.02
    assert without.precision > best.precision - 0.1
    assert without.coverage < best.coverage - 0.5 / modes
    assert without.recall < best.recall - 0.5 / modes
    for name in ("fid", "kid", "rbf", "cmmd", "fid infinity"):
        assert EVERY[name](x, collapsed)[0] > EVERY[name](x, whole)[0], name
        assert EVERY[name](x, dropped)[0] > EVERY[name](x, whole)[0], name
    assert vendi(collapsed) < vendi(whole)


# What is no number


@pytest.mark.parametrize("name", EVERY)
@given(sets=feature_sets(), side=st.booleans(), bad=st.sets(st.integers(0, 39), min_size=1, max_size=4), data=st.data())
@few
def test_nan_and_infinity_anywhere_are_an_error_that_counts_and_locates(
    name: str, sets: Sets, side: bool, bad: set[int], data: st.DataObject
) -> None:
    x, y, _ = sets
    broken = x if side and "vendi" not in name else y
    for row in bad:
        broken[row, data.draw(st.integers(0, x.shape[1] - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    for dtype in (np.float64, np.float32):
        message = f"{len(bad)} of {len(broken)} rows hold NaN or infinite values, the first is row {min(bad)}"
        with pytest.raises(DataError, match=message) as caught:
            EVERY[name](x.astype(dtype), y.astype(dtype))
        if name not in ("vendi", "vendi of order 2", "fid of moments"):
            assert f"{'real' if broken is x else 'synthetic'} features" in str(caught.value)
