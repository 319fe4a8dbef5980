"""KID, MMD under a Gaussian kernel, FID-infinity and Vendi against brute force in float64; PRDC against the prdc package.

fixtures/prdc.json holds what prdc 0.2 (`pip install prdc==0.2`, numpy 2.4) gave for `published_sets`:

    for seed, (n, m, d, k) in enumerate(sizes):  # those of the rows
        x, y = published_sets(n, m, d, seed)
        rows.append({"n": n, "m": m, "d": d, "k": k, "seed": seed, **prdc.compute_prdc(x, y, nearest_k=k)})
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from synthgen.errors import ConfigError, DataError
from synthgen.metrics.diversity import vendi
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.infinity import fid_infinity
from synthgen.metrics.kernel import cmmd, kid, kid_subsets, mmd_rbf
from synthgen.metrics.per_class import per_class
from synthgen.metrics.prdc import PRDC, prdc

PUBLISHED = json.loads((Path(__file__).parent / "fixtures" / "prdc.json").read_text(encoding="utf-8"))["rows"]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' shape checks, as a user runs it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def two_sets(n: int, m: int, d: int, offset: float = 0.0, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features; of one distribution if `same`."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    x, y = rng.normal(size=(n, d)) @ mix, rng.normal(size=(m, d)) @ mix
    return x + offset, y + offset if same else 1.2 * y + 0.3 + offset


def published_sets(n: int, m: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=seed))
    mix = rng.standard_normal((d, d)) / np.sqrt(d)
    return rng.standard_normal((n, d)) @ mix, 1.2 * rng.standard_normal((m, d)) @ mix + 0.3


def unbiased(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    (n, m) = xy.shape
    return (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()


def kid_by_hand(x: np.ndarray, y: np.ndarray, degree: int = 3, gamma: float | None = None, coef: float = 1.0) -> float:
    gamma = gamma or 1 / x.shape[1]
    return unbiased(*((gamma * a @ b.T + coef) ** degree for a, b in ((x, x), (y, y), (x, y))))


def gaussian(x: np.ndarray, y: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    xx, yy, xy = (np.exp(-cdist(a, b, "sqeuclidean") / (2 * sigma**2)) for a, b in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


# KID

SIZES = [(2, 3, 1), (50, 70, 8), (1100, 1300, 12), (1100, 900, 45), (300, 200, 90)]  # by moments thrice, by tiles twice


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("same", [False, True])
def test_kid_against_brute_force(n: int, m: int, d: int, offset: float, same: bool) -> None:
    """Float64 to rounding; float32 to 1e-5 of a KID of equal sets, which is 1e-4 of the sums it is the difference of."""
    x, y = two_sets(n, m, d, offset, same)
    assert kid(x, y) == pytest.approx(kid_by_hand(x, y), rel=1e-6)
    narrow = x.astype(np.float32), y.astype(np.float32)
    wide = narrow[0].astype(np.float64), narrow[1].astype(np.float64)
    assert kid(*narrow) == pytest.approx(kid_by_hand(*wide), rel=1e-5 if same else 5e-7)  # 1.1e-7 on some processors


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("gamma", "coef"), [(None, 1.0), (0.3, 0.0), (0.02, 2.5)])
@pytest.mark.parametrize("d", [5, 60])
def test_kid_with_other_kernels(degree: int, gamma: float | None, coef: float, d: int) -> None:
    x, y = two_sets(120, 90, d)
    expected = kid_by_hand(x, y, degree, gamma, coef)
    assert kid(x, y, degree=degree, gamma=gamma, coef=coef) == pytest.approx(expected, rel=1e-9)


def test_kernels_that_are_none_are_refused() -> None:
    x, y = two_sets(20, 20, 3)
    for setting in ({"degree": 0}, {"gamma": 0.0}, {"gamma": -1.0}, {"coef": -1.0}, {"coef": float("nan")}):
        with pytest.raises(ConfigError, match="kid: "):
            kid(x, y, **setting)
    with pytest.raises(ConfigError, match="0 subsets"):
        kid_subsets(x, y, 0, 10)
    with pytest.raises(DataError, match="20 rows are too few, at least 21"):
        kid_subsets(x, y, 2, 21)


def test_kid_of_subsets_against_torchmetrics() -> None:
    """One subset as large as the sets is the full estimate, for them and for us; smaller ones spread about it."""
    from torchmetrics.image.kid import poly_mmd

    x, y = two_sets(200, 200, 12)
    theirs = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert kid_subsets(x, y, 1, 200) == pytest.approx((theirs, 0), rel=1e-9)
    mean, spread = kid_subsets(x, y, 400, 50)
    assert mean == pytest.approx(kid(x, y), abs=4 * spread / 400**0.5)
    assert spread > 0.01
    assert kid_subsets(x, y, 5, 50) == kid_subsets(x, y, 5, 50)
    assert kid_subsets(x, y, 5, 50, seed=1) != kid_subsets(x, y, 5, 50)


def test_kid_is_unbiased() -> None:
    """Over many draws of one distribution its mean is 0, within four standard errors; the V-statistic's is far above."""
    rng = np.random.default_rng(0)
    values = [kid(rng.normal(size=(30, 8)), rng.normal(size=(40, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    values = [mmd_rbf(rng.normal(size=(30, 8)), rng.normal(size=(40, 8)), 3.0) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5


def test_features_too_large_for_float32_are_an_error_and_not_a_value() -> None:
    x, y = (1e14 * z for z in two_sets(100, 60, 30))
    assert kid(x, y) == pytest.approx(kid_by_hand(x, y), rel=1e-9)
    narrow = x.astype(np.float32), y.astype(np.float32)
    with pytest.raises(DataError, match=r"overflow torch.float32: divide them, or pass float64"):
        kid(*narrow)
    assert mmd_rbf(*(1e8 * z for z in narrow), 1e22) == pytest.approx(mmd_rbf(*(1e8 * z for z in (x, y)), 1e22), rel=1e-4)


# The Gaussian kernel


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 8), (1100, 1300, 12), (300, 200, 90)])
@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_gaussian_mmd_against_brute_force(n: int, m: int, d: int, sigma: float) -> None:
    x, y = two_sets(n, m, d, offset=3)
    xx, yy, xy = gaussian(x, y, sigma)
    assert mmd_rbf(x, y, sigma) == pytest.approx(unbiased(xx, yy, xy), rel=1e-9)
    assert mmd_rbf(x, y, sigma, unbiased=False) == pytest.approx(xx.mean() + yy.mean() - 2 * xy.mean(), rel=1e-9)
    assert mmd_rbf(x.astype(np.float32), y.astype(np.float32), sigma) == pytest.approx(unbiased(xx, yy, xy), rel=1e-5)


def test_the_bandwidth_is_the_median_distance_of_the_real_set() -> None:
    x, y = two_sets(200, 150, 6)
    assert mmd_rbf(x, y) == pytest.approx(mmd_rbf(x, y, float(np.sort(pdist(x))[(len(pdist(x)) - 1) // 2])), rel=1e-12)
    large = two_sets(1500, 10, 6)[0]
    assert mmd_rbf(large, y) == pytest.approx(mmd_rbf(large, y, float(np.median(pdist(large)))), rel=0.1)
    with pytest.raises(DataError, match="give a sigma"):
        mmd_rbf(np.ones((9, 3)), y[:, :3])
    with pytest.raises(ConfigError, match="sigma -1"):
        mmd_rbf(x, y, -1.0)


@pytest.mark.parametrize("exponent", [-100, -80, 80, 100])
def test_the_gaussian_mmd_does_not_depend_on_the_unit_of_the_features(exponent: int) -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.normal(offset, 1, (40, 5)).astype(np.float32) for offset in (0, 0.5))
    unit = np.float32(2.0**exponent)  # squares of float32 overflow or vanish
    assert mmd_rbf(x * unit, y * unit) == pytest.approx(mmd_rbf(x, y), rel=1e-5)
    with pytest.raises(DataError, match="is nothing beside features as large as"):
        mmd_rbf(x * np.float32(2.0**100), y * np.float32(2.0**100), sigma=1e-130)


def test_cmmd_by_the_formula_of_its_authors() -> None:
    """1000 (mean k_xx + mean k_yy - 2 mean k_xy) with exp(-|x - y|^2 / 200) on unit rows, diagonals counted."""
    x, y = two_sets(300, 200, 16)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    xx, yy, xy = gaussian(*unit, 10.0)
    expected = 1000 * (xx.mean() + yy.mean() - 2 * xy.mean())
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(7 * x, y) == pytest.approx(expected, rel=1e-9)  # lengths don't matter
    assert cmmd(*(z.astype(np.float32) for z in unit)) == pytest.approx(expected, rel=1e-6)
    assert cmmd(x, y, unbiased=True) == pytest.approx(1000 * unbiased(xx, yy, xy), rel=1e-9)
    y[[3, 8]] = 0
    with pytest.raises(DataError, match="synthetic: 2 of 200 rows are all 0 and have no direction, the first is row 3"):
        cmmd(x, y)


# FID-infinity


def test_fid_infinity_of_gaussians_of_known_distance() -> None:
    """N(0, 1) against N(0.1, 1.2^2) in 8 dimensions: 8 (0.1^2 + 0.2^2) = 0.4, which FID at n = 300 misses by a tenth."""
    values, plain = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(300, 8)), 0.1 + 1.2 * rng.normal(size=(300, 8))
        values.append(fid_infinity(x, y, seed=seed).value)
        plain.append(frechet_distance(x, y))
    error = np.std(values) / 12**0.5
    assert np.mean(values) == pytest.approx(0.4, abs=3 * error)
    assert error < 0.05
    assert np.mean(plain) > 0.4 + 3 * np.std(plain) / 12**0.5


def test_fid_infinity_is_the_intercept_of_a_line() -> None:
    """Through points that lie on one line it is exact; the line is checked on FIDs that are 3 + 40/n by construction."""
    from synthgen.metrics import infinity

    x = 1 / np.linspace(0.2, 1, 15)
    assert infinity._intercept(x, 3 + 0.4 * x) == pytest.approx((3, 0), abs=1e-12)
    y = 3 + 0.4 * x + 0.1 * np.cos(np.arange(15))
    (slope, value), covariance = np.polyfit(x, y, 1, cov="unscaled")
    residual = np.square(y - value - slope * x).sum() / 13
    assert infinity._intercept(x, y) == pytest.approx((value, np.sqrt(residual * covariance[1, 1])), rel=1e-9)


def test_fid_infinity_keeps_the_bias_of_a_real_set_that_stays_whole() -> None:
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(200, 16)), rng.normal(size=(200, 16))) for _ in range(8)]
    both = np.mean([fid_infinity(*pair).value for pair in sets])
    whole = np.mean([fid_infinity(*pair, whole_real=True).value for pair in sets])
    plain = np.mean([frechet_distance(*pair) for pair in sets])
    assert abs(both) < 0.2 * plain
    assert 0.3 * plain < whole < 0.7 * plain


def test_fid_infinity_refuses_sets_where_the_line_bends() -> None:
    x, y = two_sets(100, 150, 20)
    with pytest.raises(DataError, match=r"real features: the smallest subset would hold 20 of 100 rows.*105 rows are needed"):
        fid_infinity(x, y)
    fid_infinity(x, y, min_share=0.21)
    for setting in ({"num_points": 2}, {"min_share": 0.0}, {"min_share": 1.0}):
        with pytest.raises(ConfigError, match="fid_infinity: "):
            fid_infinity(x, y, **setting)


# Vendi


def vendi_by_hand(x: np.ndarray, q: float) -> float:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(x))
    shares = shares[shares > 1e-12]
    if q == 1:
        return float(np.exp(-(shares * np.log(shares)).sum()))
    return 1 / shares.max() if q == math.inf else float((shares**q).sum() ** (1 / (1 - q)))


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50), (1030, 12)])
def test_vendi_against_the_eigenvalues_of_the_kernel(q: float, n: int, d: int) -> None:
    x = two_sets(n, 5, d)[0]
    assert vendi(x, q) == pytest.approx(vendi_by_hand(x, q), rel=1e-9)
    assert vendi(x.astype(np.float32), q) == pytest.approx(vendi_by_hand(x, q), rel=1e-4 if q < 1 else 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
def test_vendi_counts_what_is_different(dtype: type, q: float) -> None:
    row = np.random.default_rng(0).normal(size=(1, 12)).astype(dtype)
    assert vendi(np.repeat(row, 40, axis=0), q) == pytest.approx(1, rel=1e-5)
    assert vendi(np.eye(12, dtype=dtype), q) == pytest.approx(12, rel=1e-5)
    assert vendi(np.repeat(np.eye(12, dtype=dtype), 5, axis=0), q) == pytest.approx(12, rel=1e-5)
    with pytest.raises(ConfigError, match="order 0"):
        vendi(row, 0.0)


# Precision, recall, density, coverage


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['n']}x{row['d']}-k{row['k']}")
def test_prdc_against_the_published_implementation(row: dict[str, float]) -> None:
    x, y = published_sets(row["n"], row["m"], row["d"], row["seed"])
    expected = tuple(row[name] for name in PRDC._fields)
    assert tuple(prdc(x, y, row["k"])) == pytest.approx(expected, abs=1e-6)
    assert tuple(prdc(x.astype(np.float32), y.astype(np.float32), row["k"])) == pytest.approx(expected, abs=2e-3)


# Per class


@pytest.mark.parametrize("metric", [frechet_distance, kid, prdc, mmd_rbf])
def test_metrics_per_class(metric) -> None:  # type: ignore[no-untyped-def]
    x, y = two_sets(60, 50, 4)
    real_labels, synthetic_labels = np.arange(60) % 3, np.r_[np.zeros(20, int), np.ones(25, int), 2, 2, 2, 7, 7]
    found = per_class(metric, x, real_labels, torch.from_numpy(y), torch.from_numpy(synthetic_labels), need=6)
    assert list(found) == [0, 1, 2, 7]
    assert found[0] == metric(x[real_labels == 0], y[:20])
    assert found[1] == metric(x[real_labels == 1], y[20:45])
    assert found[2] is None  # 3 rows
    assert found[7] is None  # no real row


def test_what_goes_wrong_in_a_class_is_said_with_the_class(unchecked: None) -> None:
    x, y = two_sets(60, 60, 4)
    labels = np.arange(60) % 3
    y[labels.tolist().index(2)] = np.nan
    with pytest.raises(DataError, match="class 2: kid: synthetic features: 1 of 20 rows"):
        per_class(kid, x, labels, y, labels, need=2)
    with pytest.raises(DataError, match="60 real rows, but labels of shape"):
        per_class(kid, x, labels[:5], y, labels, need=2)
