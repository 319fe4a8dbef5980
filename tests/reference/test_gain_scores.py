"""Scores of predictions against scikit-learn and torchmetrics, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score
from torchmetrics.classification import MulticlassCalibrationError

from synthgen.errors import DataError
from synthgen.gain.scores import calibration_error, scores


def predictions(rng: np.random.Generator, n: int, k: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    logits = sharpness * rng.standard_normal((n, k))
    labels = rng.integers(k, size=n)
    logits[np.arange(n), labels] += 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k", "sharpness"), [(300, 10, 1.0), (50, 3, 4.0), (7, 2, 0.3), (1, 5, 1.0)])
def test_scores_are_those_of_sklearn_and_torchmetrics(seed, n, k, sharpness):
    probabilities, labels = predictions(np.random.default_rng(seed), n, k, sharpness)
    found, predicted, present = scores(probabilities, labels), probabilities.argmax(1), np.unique(labels)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    summing_to_one = probabilities / probabilities.astype(np.float64).sum(1, keepdims=True)
    assert found.loss == pytest.approx(log_loss(labels, summing_to_one, labels=range(k)), rel=1e-5)
    expected = f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(expected)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert [r for r in found.recalls if r is not None] == pytest.approx(list(recalls))
    assert [i for i, r in enumerate(found.recalls) if r is not None] == list(present)
    assert found.worst_class == pytest.approx(min(recalls))
    peer = MulticlassCalibrationError(num_classes=k, n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(peer(torch.from_numpy(probabilities), torch.from_numpy(labels))), abs=1e-6)
    assert found.worst_group is None


def test_a_class_that_the_set_has_not_counts_nowhere():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]])
    found = scores(probabilities, np.array([0, 1, 1]))
    assert found.recalls == (1.0, 0.5, None)
    assert (found.macro_f1, found.worst_class) == (pytest.approx((1 + 2 / 3) / 2), 0.5)


def test_the_worst_group_is_the_least_accurate_one_and_images_without_a_group_are_in_none():
    probabilities = np.eye(2)[[0, 0, 0, 1, 1, 0]]
    labels = np.array([0, 0, 1, 1, 1, 1])
    for groups in (["a", "a", "b", "b", "b", None], np.array(["a", "a", "b", "b", "b", None], dtype=object)):
        assert scores(probabilities, labels, groups).worst_group == pytest.approx(2 / 3)
    assert scores(probabilities, labels, [None] * 6).worst_group is None


def test_a_sure_mistake_costs_a_finite_loss():
    assert scores(np.array([[1.0, 0.0]]), np.array([1])).loss == pytest.approx(-math.log(1e-7))


def test_calibration_bins_are_open_below_and_closed_above():
    """Guo et al. 2017. 0.2 = 3/15 belongs to the bin below it, 1 to the last; each pair shares a bin, so gaps cancel."""
    right = np.array([1.0, 0.0])
    for low, high in [(0.15, 0.2), (0.95, 1.0)]:
        together = abs((1 - low) + (0 - high)) / 2
        assert calibration_error(np.array([low, high]), right) == pytest.approx(together)
    apart = (abs(1 - 0.2) + abs(0 - 0.21)) / 2
    assert calibration_error(np.array([0.2, 0.21]), right) == pytest.approx(apart)


def test_a_calibrated_classifier_has_a_small_error_and_an_overconfident_one_has_not():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 50_000)
    right = rng.random(50_000) < sure
    assert calibration_error(sure, right) < 0.01
    assert calibration_error(np.minimum(1, sure + 0.1), right) == pytest.approx(0.09, abs=0.01)


@pytest.mark.parametrize(
    ("probabilities", "labels", "groups", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), None, "no images"),
        (np.ones((2, 2)) / 2, np.array([0, -1]), None, "1 of 2 images have no label among the 2 classes"),
        (np.ones((2, 2)) / 2, np.array([0, 2]), None, "one has 2"),
        (np.full((2, 2), np.nan), np.array([0, 1]), None, "finite: did the training diverge.* Lower classifier.lr, or look for"),
        (np.ones((2, 2)) / 2, np.array([0, 1]), ["a"], "1 groups"),
    ],
)
def test_what_cannot_be_scored_is_refused(probabilities, labels, groups, message):
    with pytest.raises(DataError, match=message):
        scores(probabilities, labels, groups)
