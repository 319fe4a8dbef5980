"""Known-answer generators in the gain study: more real images must be used, copies bring nothing, wrong labels harm.

The setting is the product's: digits, 50 labelled images to train on, 50 for val, 300 unlabelled as reference, half of
all as the test split. 400 images that are in no role play the generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from synthgen.config.schema import AugmentConfig, ClassifierConfig, DataConfig, GainConfig, SplitConfig
from synthgen.data import sources, splits
from synthgen.gain.arms import StudyData
from synthgen.gain.study import Cell, Trained, assess, predict, train_cell
from synthgen.randomness import stream
from synthgen.types import Batch, GainReport, Interval, Silent

SEEDS = 6
CLASSIFIER = ClassifierConfig(width=16, batch_size=32, steps=200)
AUGMENT = AugmentConfig(flip=False, shift_px=1, rotate_deg=10, scale=0.1)
CONFIG = GainConfig(seeds=SEEDS)
ARMS = ("real_aug", "synthetic_gated")


@dataclass
class Setting:
    """The real roles, images that nobody saw, and the real-only networks with their predictions on test."""

    data: StudyData
    test: Batch
    unseen: Batch
    trained: dict[Cell, Trained]
    on_test: dict[Cell, np.ndarray]


def train(cell: Cell, data: StudyData) -> Trained:
    return train_cell(cell, data, CLASSIFIER, AUGMENT, CONFIG, teacher=None, device="cpu", progress=Silent(), task="gain")


def networks(recipe: str, data: StudyData, test: Batch) -> tuple[dict[Cell, Trained], dict[Cell, np.ndarray]]:
    trained = {cell: train(cell, data) for cell in (Cell(recipe, seed, 0) for seed in range(SEEDS))}
    return trained, {cell: predict(done, data.spec, CLASSIFIER, test) for cell, done in trained.items()}


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.set_num_threads(1)
    real = sources.load(DataConfig(source="digits"))
    sizes = SplitConfig(train=50, val=50, reference=300, reference_labelled=False, test=0.5)
    rows = splits.split(real, sizes)
    role = {name: splits.role_batch(real, chosen, name != "reference") for name, chosen in rows.items()}
    left = np.setdiff1d(np.arange(len(real.batch)), np.concatenate(list(rows.values())))
    unseen = real.batch.take(stream(0, "unseen").permutation(left)[:400])
    data = StudyData(real.spec, role["train"], role["val"], role["reference"], unseen, unseen)
    return Setting(data, role["test"], unseen, *networks("real_aug", data, role["test"]))


def judged(setting: Setting, synthetic: Batch) -> tuple[GainReport, Interval]:
    data = replace(setting.data, gated=synthetic, ungated=synthetic)
    trained, on_test = networks("synthetic_gated", data, setting.test)
    trained, on_test = setting.trained | trained, setting.on_test | on_test
    report = assess(ARMS, {}, "real_aug", trained, on_test, data.val, setting.test, CLASSIFIER.steps, CONFIG)
    assert report.decisive == (("synthetic_gated", "real_aug"),)
    return report, report.intervals[0]


def test_an_oracle_is_used(setting):
    """400 more real images with their true labels: the study must see what they are worth."""
    report, interval = judged(setting, setting.unseen)
    assert interval.low > 0
    assert interval.difference > 5
    assert report.verdict == "use"


def test_a_copier_gains_nothing(setting):
    """The train images again, eight times over."""
    copies = setting.data.train.take(np.tile(np.arange(50), 8))
    report, interval = judged(setting, copies)
    assert interval.low <= 0
    assert report.verdict != "use"


def test_shuffled_labels_harm(setting):
    """The oracle's images, each with the label of another."""
    labels = stream(0, "shuffled").permutation(setting.unseen.labels)
    report, interval = judged(setting, replace(setting.unseen, labels=labels))
    assert interval.high < 0
    assert report.verdict == "reject"
    assert any("it harms" in reason for reason in report.reasons)


def test_noise_is_not_used(setting):
    """Pixels without any image, labelled in turn."""
    pixels = stream(0, "noise").integers(0, 256, setting.unseen.images.shape, dtype=np.uint8)
    noise = replace(setting.unseen, images=pixels, labels=np.arange(400) % 10)
    report, interval = judged(setting, noise)
    assert interval.low <= 0
    assert report.verdict != "use"


def test_the_study_is_fixed_by_its_seeds(setting):
    one, two = Cell("real_aug", 1, 0), Cell("real_aug", 2, 0)
    assert np.array_equal(train(one, setting.data).val, setting.trained[one].val)
    assert not np.array_equal(setting.trained[one].val, setting.trained[two].val)
