"""What the metrics must say of scenarios with a name, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from synthgen.errors import DataError
from synthgen.metrics import kernel, neighbours
from synthgen.metrics.copies import duplicate_groups
from synthgen.metrics.features import extractor_id
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.kernel import kid, mmd_rbf
from synthgen.metrics.lowlevel import lowlevel
from synthgen.metrics.neighbours import knn
from synthgen.metrics.prdc import prdc


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' shape checks, as a user runs it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def clusters(rng: np.random.Generator, n: int, modes: int, d: int = 6) -> np.ndarray:
    centres = 3 * np.random.default_rng(7).normal(size=(10, d))
    return centres[rng.integers(0, modes, n)] + rng.normal(size=(n, d))


def pictures(rng: np.random.Generator, n: int, shape: tuple[int, int, int] = (1, 8, 8)) -> np.ndarray:
    return rng.integers(0, 256, (n, *shape)).astype(np.uint8)


# Metrics


def test_a_set_against_itself(rng: np.random.Generator) -> None:
    for n in (300, 20):  # more and fewer rows than dimensions
        x = clusters(rng, n, 10, d=32)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
        assert tuple(prdc(x, x))[:2] == (1, 1)
        assert prdc(x, x).coverage == 1
        assert kid(x, x) < 0  # an unbiased estimate of 0 that sees every point twice


def test_two_draws_of_one_distribution(rng: np.random.Generator) -> None:
    x, y = clusters(rng, 1000, 10), clusters(rng, 1000, 10)
    assert frechet_distance(x, y) < 1
    assert min(prdc(x, y)) > 0.9


def test_mode_collapse_has_high_precision_and_low_recall(rng: np.random.Generator) -> None:
    x, y = clusters(rng, 1000, 10), clusters(rng, 1000, 2)
    found = prdc(x, y)
    assert found.precision > 0.95
    assert found.recall < 0.3
    assert found.coverage < 0.3
    assert found.density > 0.9
    assert frechet_distance(x, y) > 5


def test_mode_invention_has_low_precision_and_high_recall(rng: np.random.Generator) -> None:
    x, y = clusters(rng, 1000, 2), clusters(rng, 1000, 10)
    found = prdc(x, y)
    assert found.precision < 0.35
    assert found.recall > 0.95


def test_order_does_not_matter(rng: np.random.Generator) -> None:
    x, y = clusters(rng, 700, 10), clusters(rng, 600, 8)
    a, b = x[rng.permutation(700)], y[rng.permutation(600)]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert kid(a, b) == pytest.approx(kid(x, y), rel=1e-9)
    assert tuple(prdc(a, b)) == pytest.approx(tuple(prdc(x, y)), abs=1e-12)


def test_tiles_do_not_matter(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clusters(rng, 300, 10), clusters(rng, 200, 8)
    before = kid(x, y), *prdc(x, y), knn(x, x, 3, exclude_self=True)[0]
    monkeypatch.setattr(kernel, "CHUNK", 37)
    monkeypatch.setattr(neighbours, "TILE", {"cpu": 64})
    after = kid(x, y), *prdc(x, y), knn(x, x, 3, exclude_self=True)[0]
    assert after[:5] == pytest.approx(before[:5], rel=1e-9)
    assert torch.allclose(after[5], before[5], rtol=1e-9)


def test_identical_points_are_inside_their_own_ball() -> None:
    """All radii are 0: a tie by the letter of the paper, and the best a set can do by its sense."""
    x = np.ones((20, 3))
    assert tuple(prdc(x, x)) == (1, 1, 20 / 5, 1)
    assert prdc(x, x + 1).precision == 0


def test_a_far_offset_does_not_hide_an_exact_copy(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 8)).astype(np.float32) + 1000
    assert (knn(x, x, 1)[0] == 0).all()


@pytest.mark.parametrize("metric", [frechet_distance, kid, prdc])
def test_features_that_are_not_finite_are_counted_and_located(metric, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    y[7, 2], y[7, 3], y[21, 0] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match="synthetic features: 2 of 30 rows hold NaN or infinite values, the first is row 7"):
        metric(x, y)


@pytest.mark.parametrize(("metric", "need"), [(frechet_distance, 2), (kid, 2), (prdc, 6)])
def test_too_few_rows_are_refused_with_the_number_needed(metric, need: int, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    enough, few = rng.normal(size=(need, 4)), rng.normal(size=(need - 1, 4))
    metric(enough, enough)
    with pytest.raises(DataError, match=f"{need - 1} rows are too few, at least {need} are needed"):
        metric(enough, few)


def test_two_extractors_cannot_be_compared(unchecked: None, rng: np.random.Generator) -> None:
    with pytest.raises(DataError, match="real features have 4 dimensions, synthetic ones 5"):
        frechet_distance(rng.normal(size=(9, 4)), rng.normal(size=(9, 5)))


@pytest.mark.parametrize("spread", [10, 50, 500])
def test_far_clusters_do_not_blur_float32_distances(rng: np.random.Generator, spread: float) -> None:
    x, y = (spread * rng.choice([-1, 1], (400, 1)) + 0.05 * rng.normal(size=(400, 20)) for _ in range(2))
    x, y = x.astype(np.float32), y.astype(np.float32)
    assert tuple(prdc(x, y)) == pytest.approx(tuple(prdc(x.astype(np.float64), y.astype(np.float64))), abs=1e-3)
    assert mmd_rbf(x, y, 1.0) == pytest.approx(mmd_rbf(x.astype(np.float64), y.astype(np.float64), 1.0), rel=1e-4)


def test_an_outlier_does_not_blur_float32_distances(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(300, 16)).astype(np.float32), rng.normal(size=(300, 16)).astype(np.float32)
    x[0] = 1e6
    assert tuple(prdc(x, y)) == pytest.approx(tuple(prdc(x.astype(np.float64), y.astype(np.float64))), abs=1e-12)
    assert mmd_rbf(x, y, 4.0) == pytest.approx(mmd_rbf(x.astype(np.float64), y.astype(np.float64), 4.0), rel=1e-4)


@pytest.mark.parametrize("scale", [4e18, 1e19, 1e-25])
def test_scale_does_not_matter(rng: np.random.Generator, scale: float) -> None:
    x, y = rng.normal(size=(300, 16)).astype(np.float32), rng.normal(size=(300, 16)).astype(np.float32)
    assert tuple(prdc(np.float32(scale) * x, np.float32(scale) * y)) == pytest.approx(tuple(prdc(x, y)), abs=0.01)


def test_sorted_modes_do_not_blur_fid(rng: np.random.Generator) -> None:
    sides = [np.concatenate([c + 0.01 * rng.normal(size=(4500, 300)) for c in (50, -50)]).astype(np.float32) for _ in range(2)]
    assert frechet_distance(*sides) == pytest.approx(frechet_distance(*(z.astype(np.float64) for z in sides)), rel=1e-3)


def test_arrays_are_taken_as_they_come(rng: np.random.Generator) -> None:
    """Backwards, read-only, or with a gradient: none is changed, and none is refused."""
    x, y = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    expected = frechet_distance(x, y), kid(x, y), *prdc(x, y)
    frozen, before = x.copy(), x.copy()
    frozen.flags.writeable = False
    for given in (x[::-1], frozen, torch.tensor(x, requires_grad=True), x):
        assert (frechet_distance(given, y), kid(given, y), *prdc(given, y)) == pytest.approx(expected, rel=1e-6)
    assert (x == before).all()


# Duplicates


def test_equal_images_are_duplicates_at_any_reach(rng: np.random.Generator) -> None:
    images = np.repeat(pictures(rng, 3), 4, axis=0)
    assert duplicate_groups(images, np.zeros(12)).tolist() == [0] * 4 + [4] * 4 + [8] * 4


# Features


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(x.flatten(1)))


def test_the_extractor_id_follows_the_weights() -> None:
    torch.manual_seed(0)
    network = Flat()
    first = extractor_id(network, "flat, 8x8")
    assert first.startswith("flat, 8x8 sha256:")
    assert extractor_id(network, "flat, 8x8") == first
    with torch.no_grad():
        network.layer.weight[0, 0] += 1e-3
    assert extractor_id(network, "flat, 8x8") != first


def test_low_level_statistics_of_grey_and_colour_agree(rng: np.random.Generator) -> None:
    grey = pictures(rng, 5)
    assert torch.allclose(lowlevel(grey), lowlevel(np.repeat(grey, 3, axis=1)))
    assert torch.isfinite(lowlevel(np.zeros((2, 1, 8, 8), np.uint8))).all()
