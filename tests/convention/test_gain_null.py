"""Test of the test: an arm against itself at other seeds is significant about as often as it should be, in 5% of draws.

Its intervals count the test images as a sample too, so that they are wide for a difference of seeds alone: a little
below 5% is right. (Measured over 5,000 draws from these networks: 4.5%, and 5.2% for Student's t over seeds alone.)
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen.config.schema import AugmentConfig, ClassifierConfig, DataConfig, GainConfig, SplitConfig
from synthgen.data import sources, splits
from synthgen.gain import cells
from synthgen.gain.cells import Cell, Network, Setting
from synthgen.gain.data import StudyData
from synthgen.gain.stats import paired_interval
from synthgen.randomness import stream

NETWORKS, TOGETHER, SEEDS, DRAWS = 80, 20, 10, 200


@pytest.fixture(scope="module")
def right() -> np.ndarray:
    """Of 80 networks of one recipe, trained on the same 50 digits: 1 where one is right on a test image."""
    torch.set_num_threads(1)
    real = sources.load(DataConfig(source="digits"))
    rows = splits.split(real, SplitConfig(train=50, val=50, reference=300, reference_labelled=False, test=0.5))
    role = {name: splits.role_batch(real, chosen, name != "reference") for name, chosen in rows.items()}
    none = role["train"].take(np.arange(0))
    data = StudyData(real.spec, role["train"], role["val"], role["reference"], none, none, none, none)
    augment = AugmentConfig(flip=False, shift_px=1, rotate_deg=10, scale=0.1)
    setting = Setting(data, ClassifierConfig(width=8, batch_size=32, steps=60), augment, GainConfig(), "cpu")
    found = []
    for first in range(0, NETWORKS, TOGETHER):
        cell = Cell("real_aug", 1.0, tuple(Network(seed, 0) for seed in range(first, first + TOGETHER)))
        predicted = cells.predict(cell, cells.train_cell(cell, setting, None), setting, role["test"].images)
        found.append(predicted.argmax(2) == role["test"].labels)
    return np.concatenate(found).astype(np.float64)


def significant(right: np.ndarray, spoilt: float) -> float:
    """Share of draws of two disjoint sets of seeds that differ significantly, the second wrong on `spoilt` more images."""
    count = 0
    for draw in range(DRAWS):
        draws = stream(0, "null", draw)
        chosen = draws.permutation(NETWORKS)[: 2 * SEEDS]
        arm, baseline = right[chosen[:SEEDS]], right[chosen[SEEDS:]]
        if spoilt:
            baseline = baseline * (draws.random(baseline.shape) >= spoilt)
        interval = paired_interval("arm", "itself", arm, baseline)
        assert (interval.p < 0.05) == (interval.low > 0 or interval.high < 0)
        count += interval.p < 0.05
    return count / DRAWS


def test_the_networks_differ_as_seeds_do(right):
    assert right.shape == (NETWORKS, 898)
    assert 0.6 < right.mean() < 0.95
    assert 0.005 < right.mean(1).std() < 0.1


def test_an_arm_against_itself_is_significant_in_about_5_percent_of_draws(right):
    share = significant(right, 0.0)
    assert 0.01 <= share <= 0.10, f"significant in {share:.1%} of {DRAWS} draws"


def test_a_true_difference_is_found(right):
    """A tenth of the right answers taken away, about 8 points."""
    share = significant(right, 0.1)
    assert share > 0.9, f"significant in {share:.1%} of {DRAWS} draws"
