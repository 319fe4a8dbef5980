"""Known-answer generators in the gain study: more real images must be used, copies bring nothing, wrong labels harm.

The setting is the product's: digits, 50 labelled images to train on, 50 for val, 300 unlabelled as reference, half of
all as the test split. 400 images that are in no role play the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from synthgen.config.schema import AugmentConfig, ClassifierConfig, DataConfig, GainConfig, SplitConfig
from synthgen.data import sources, splits
from synthgen.gain import assess, cells
from synthgen.gain.cells import Cell, Setting, Trained
from synthgen.gain.data import StudyData
from synthgen.gain.study import conduct
from synthgen.randomness import stream
from synthgen.types import Batch, GainReport, Interval

CLASSIFIER = ClassifierConfig(width=16, batch_size=32, steps=150)
AUGMENT = AugmentConfig(flip=False, shift_px=1, rotate_deg=10, scale=0.1)
CONFIG = GainConfig(seeds=5, tune_seeds=0, curve=False, committee=2)
ARMS = ("real_aug", "synthetic_gated")
WHOLE = (*ARMS, "real_committee", "synthetic_committee", "real_trainval", "synthetic_trainval")
"""The fewest arms that "use" can come of."""


@dataclass
class Digits:
    """The real roles, images that nobody saw, and the real-only networks with their predictions on test."""

    setting: Setting
    test: Batch
    unseen: Batch
    trained: dict[Cell, Trained] = field(default_factory=dict)
    on_test: dict[Cell, np.ndarray] = field(default_factory=dict)

    def judged(self, synthetic: Batch, arms: Sequence[str] = ARMS) -> GainReport:
        """A whole study with these images as the generator's; real-only networks are trained once for all."""
        data = replace(self.setting.data, gated=synthetic, ungated=synthetic, with_copies=synthetic)
        setting = replace(self.setting, data=data)
        on_test: dict[Cell, np.ndarray] = {}

        def train(wanted: Sequence[Cell], teachers: Sequence[Cell]) -> dict[Cell, Trained]:
            done = {}
            for cell in wanted:
                real = cell.recipe.startswith("real")
                if not (real and cell in self.trained):
                    done[cell] = cells.train_cell(cell, setting, None)
                    on_test[cell] = cells.predict(cell, done[cell], setting, self.test.images)
                    if real:
                        self.trained[cell], self.on_test[cell] = done[cell], on_test[cell]
                done[cell], on_test[cell] = (self.trained[cell], self.on_test[cell]) if real else (done[cell], on_test[cell])
            return done

        study = conduct(arms, setting, train)
        return assess.assess(study, on_test, assess.TestSet(self.test), setting)


@pytest.fixture(scope="module")
def digits() -> Digits:
    torch.set_num_threads(1)
    real = sources.load(DataConfig(source="digits"))
    sizes = SplitConfig(train=50, val=50, reference=300, reference_labelled=False, test=0.5)
    rows = splits.split(real, sizes)
    role = {name: splits.role_batch(real, chosen, name != "reference") for name, chosen in rows.items()}
    left = np.setdiff1d(np.arange(len(real.batch)), np.concatenate(list(rows.values())))
    unseen = real.batch.take(stream(0, "unseen").permutation(left)[:400])
    none = unseen.take(np.arange(0))
    data = StudyData(real.spec, role["train"], role["val"], role["reference"], none, none, none, none)
    return Digits(Setting(data, CLASSIFIER, AUGMENT, CONFIG, "cpu"), role["test"], unseen)


def decisive(report: GainReport) -> Interval:
    pair = ("synthetic_gated", "real_aug")
    assert pair in report.decisive
    return next(i for i in report.intervals if (i.arm, i.baseline) == pair)


def test_an_oracle_is_used(digits):
    """400 more real images with their true labels: the study must see what they are worth."""
    report = digits.judged(digits.unseen, WHOLE)
    interval = decisive(report)
    assert interval.low > 0
    assert interval.difference > 5
    assert report.verdict == "use"


def test_a_copier_gains_nothing(digits):
    """The train images again, eight times over."""
    report = digits.judged(digits.setting.data.train.take(np.tile(np.arange(50), 8)))
    assert decisive(report).low <= 0
    assert report.verdict != "use"


def test_shuffled_labels_harm(digits):
    """The oracle's images, each with the label of another."""
    labels = stream(0, "shuffled").permutation(digits.unseen.labels)
    report = digits.judged(replace(digits.unseen, labels=labels))
    assert decisive(report).high < 0
    assert report.verdict == "reject"
    assert any("it harms" in reason for reason in report.reasons)


def test_noise_is_not_used(digits):
    """Pixels without any image, labelled in turn."""
    pixels = stream(0, "noise").integers(0, 256, digits.unseen.images.shape, dtype=np.uint8)
    report = digits.judged(replace(digits.unseen, images=pixels, labels=np.arange(400) % 10))
    assert decisive(report).low <= 0
    assert report.verdict != "use"


def test_a_study_is_fixed_by_its_seeds(digits):
    """The same networks again, and other ones for other seeds; a report but for its seconds."""
    short = replace(
        digits,
        setting=replace(digits.setting, classifier=CLASSIFIER.model_copy(update={"steps": 20})),
        trained={},
        on_test={},
    )
    once = short.judged(digits.unseen)
    short.trained.clear()
    again = short.judged(digits.unseen)
    assert again.intervals == once.intervals
    assert [row.test for row in again.rows] == [row.test for row in once.rows]
    assert len({row.test.loss for row in once.rows}) == len(once.rows), "every network is another"
