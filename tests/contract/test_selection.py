"""The budget: useful samples are chosen among the valid ones alone, class by class, and never at recall's cost."""

from __future__ import annotations

import numpy as np
import pytest

from synthgen.config.schema import GateConfig
from synthgen.gate.evidence import Evidence
from synthgen.gate.selection import herding, quotas, select
from synthgen.metrics.kernel import mmd_rbf
from synthgen.types import FeatureSet


def evidence(features: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | None = None) -> Evidence:
    n = len(features)
    keys = tuple(f"candidate-{i:06d}" for i in range(n))
    if probabilities is None:
        probabilities = np.full((n, 2), 0.5)
    return Evidence(np.zeros((n, 1, 2, 2), np.uint8), FeatureSet("x", features.astype(np.float32), labels, keys), probabilities)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def reference(rng: np.random.Generator) -> Evidence:
    return evidence(rng.normal(size=(300, 4)), np.full(300, -1))


def test_without_a_budget_all_valid_ones_are_kept(rng: np.random.Generator, reference: Evidence) -> None:
    candidates, valid = evidence(rng.normal(size=(50, 4)), np.arange(50) % 2), np.arange(50) < 30
    for budget in (None, 30, 100):
        kept, record = select(candidates, valid, reference, GateConfig(budget=budget), 0)
        assert (kept == valid).all()
        assert record is None


@pytest.mark.parametrize("prefer", ["random", "entropy", "margin", "herding"])
def test_a_budget_takes_valid_ones_in_their_class_mix(rng: np.random.Generator, reference: Evidence, prefer: str) -> None:
    labels = (np.arange(400) % 4 == 0).astype(np.int64)
    probabilities = rng.dirichlet((1, 1), size=400)
    candidates, valid = evidence(rng.normal(size=(400, 4)), labels, probabilities), np.arange(400) < 320
    config = GateConfig(budget=80, prefer=prefer)
    kept, record = select(candidates, valid, reference, config, 0)
    assert kept.sum() == 80
    assert not kept[320:].any()
    assert np.bincount(labels[kept]).tolist() == [60, 20]
    assert record is not None
    assert (record.prefer, record.budget, record.offered) == (prefer, 80, 320)
    again, _ = select(candidates, valid, reference, config, 0)
    assert (kept == again).all()


@pytest.mark.parametrize("prefer", ["entropy", "margin"])
def test_the_least_sure_ones_come_first(rng: np.random.Generator, reference: Evidence, prefer: str) -> None:
    sure = np.linspace(0.5, 0.99, 200)
    order = rng.permutation(200)
    probabilities = np.stack([sure, 1 - sure], axis=1)[order]
    candidates = evidence(rng.normal(size=(200, 4)), np.zeros(200, np.int64), probabilities)
    kept, record = select(candidates, np.ones(200, bool), reference, GateConfig(budget=50, prefer=prefer), 0)
    assert record is not None
    assert record.random_share == 0
    assert probabilities[kept, 0].max() < probabilities[~kept, 0].min()


def test_herding_comes_nearer_to_the_reference_than_chance(rng: np.random.Generator, reference: Evidence) -> None:
    candidates = evidence(rng.normal(size=(1000, 4)) * 1.5 + 0.3, np.zeros(1000, np.int64))
    kept, record = select(candidates, np.ones(1000, bool), reference, GateConfig(budget=150, prefer="herding"), 0)
    assert record is not None
    real, features = reference.features.features, candidates.features.features
    assert record.mmd == pytest.approx(mmd_rbf(real, features[kept]))
    assert record.mmd < 0.3 * record.mmd_random
    assert record.recall >= 0.8 * record.recall_random


def test_herding_takes_the_nearest_of_two_clusters_in_turn() -> None:
    """Greedy by hand: two target clusters, so the second pick lies in the other one, whatever is nearest to the first."""
    target = np.array([[0.0, 0], [0, 0], [10, 0], [10, 0]])
    order = herding(np.array([[0.0, 0.1], [0.1, 0], [10, 0.2], [5, 5]]), target, np.zeros(4, np.int64), np.array([3]))
    assert order[0] in (0, 1)
    assert order[1] == 2
    assert sorted(order[:3]) == [0, 1, 2]


def test_recall_is_not_given_up_for_a_preference(rng: np.random.Generator, reference: Evidence) -> None:
    """The unsure ones sit in one spot: taking them alone would cover nothing, so half and more is drawn at random."""
    spot = np.arange(600) < 200
    features = np.where(spot[:, None], 0.01 * rng.normal(size=(600, 4)), rng.normal(size=(600, 4)))
    sure = np.where(spot, 0.5, 0.99)
    candidates = evidence(features, np.zeros(600, np.int64), np.stack([sure, 1 - sure], axis=1))
    kept, record = select(candidates, np.ones(600, bool), reference, GateConfig(budget=150, prefer="entropy"), 0)
    assert record is not None
    assert record.random_share >= 0.5
    assert record.coverage >= 0.8 * record.coverage_random
    assert kept[~spot].sum() > 40


def test_quotas_fill_the_budget() -> None:
    for counts in ([5, 5, 5], [1, 0, 99], [7, 3, 2]):
        quota = quotas(np.array(counts), 4)
        assert quota.sum() == 4
        assert (quota <= np.array(counts)).all()
