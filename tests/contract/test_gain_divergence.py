"""Training that diverges ends an arm, not the study; and no arm is the better for another's failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.errors import TrainingError
from synthgen.gain.arms import ARMS, TEACHER
from synthgen.gain.assess import TestSet as Locked
from synthgen.gain.assess import assess, decisive_pairs
from synthgen.gain.cells import Cell, Network, Setting, Trained, attempt, train_cell
from synthgen.gain.study import Study, conduct
from synthgen.types import DatasetSpec, GainReport
from tests.conftest import blank_images as images
from tests.conftest import blank_study
from tests.contract.test_gain_study import Fake
from tests.contract.test_gain_verdict import predicted

CONFIG = GainConfig(seeds=4, committee=3, large_committee=5, tune_seeds=2, together=4, curve=False)
WHY = "real-1-s0m0-s3m0: the loss is nan at step 3; lower its lr, or check the images"
PLAIN = ("real", "real_aug", "synthetic_gated", "synthetic_1x")


@dataclass
class Diverging(Fake):
    """Fails where a cell is named: (recipe, extra)."""

    bad: Sequence[tuple[str, str]] = field(default=())

    def _trained(self, cell: Cell) -> Trained:
        done = super()._trained(cell)
        return replace(done, failure=WHY) if (cell.recipe, cell.extra) in self.bad else done


@pytest.fixture
def setting(toy_spec: DatasetSpec) -> Setting:
    data = replace(blank_study(toy_spec, 60), pool_labels=None)  # else "use" needs an arm that has them
    return Setting(data, ClassifierConfig(), AugmentConfig(), CONFIG, "cpu")


def studied(setting: Setting, arms: Sequence[str], *bad: str | tuple[str, str], **right: int) -> Study:
    pairs = [each if isinstance(each, tuple) else (each, "") for each in bad]
    return conduct(arms, setting, Diverging(lambda cell, network: right.get(cell.recipe, 30), bad=pairs))


def reported(study: Study, setting: Setting) -> GainReport:
    """Every synthetic network right on nine tenths of the test images, every other on a half."""
    test = images(600, "test")
    hard = np.random.default_rng(0).random(600)
    found = {
        cell: np.stack(
            [
                predicted(hard < (0.9 if "synthetic" in cell.recipe else 0.5) + 0.01 * network.seed, test.labels)
                for network in cell.networks
            ]
        )
        for cell in study.trained
    }
    return assess(study, found, Locked(test), setting)


# A cell


def test_a_real_divergence_is_told_and_raised(toy_spec):
    setting = Setting(
        blank_study(toy_spec, 7), ClassifierConfig(width=4, batch_size=8, steps=20, lr=1e25), AugmentConfig(), CONFIG, "cpu"
    )
    cell = Cell("real_aug", 1.0, (Network(0, 0), Network(1, 0)))
    done = attempt(cell, setting, None)
    assert "the loss is nan" in done.failure or "no longer finite" in done.failure
    assert "\n" not in done.failure
    assert done.val.shape == (2, 7, 3)
    assert done.seconds > 0
    assert Trained.from_bytes(done.to_bytes()).failure == done.failure
    with pytest.raises(TrainingError):
        train_cell(cell, setting, None)


# The study


FOLLOWING = ("real_committee", "real_trainval", "synthetic_committee", "synthetic_trainval")


def test_an_arm_that_diverges_is_skipped_with_the_reason(setting):
    study = studied(setting, (*PLAIN, *FOLLOWING), "real", real=60)
    assert study.skipped["real"] == f"its training failed: {WHY}"
    assert [cell.recipe for cell in study.failed] == ["real"]
    assert not set(study.failed) & set(study.trained), "it is never asked about the test images"
    assert set(study.votes) == {"real_aug", "synthetic_gated", "synthetic_1x", *FOLLOWING}
    assert study.single_real == "real_aug", "the strongest of those that trained"
    report = reported(study, setting)
    assert report.skipped["real"] == study.skipped["real"]
    assert {row.arm for row in report.rows} == set(study.votes)
    assert report.verdict == "use"
    assert "real" not in report.recipes
    assert GainReport.from_json(report.to_json()) == report


def test_the_strongest_synthetic_is_chosen_among_those_that_trained(setting):
    study = studied(setting, PLAIN, "synthetic_gated", synthetic_gated=60)
    assert study.best_synthetic == "synthetic_1x"
    assert decisive_pairs(study) == [("synthetic_1x", "real_aug"), ("synthetic_1x", "real")] or study.best_real == "real"


@pytest.mark.parametrize(
    ("bad", "kind"), [(("real", "real_aug"), "of real images alone"), (("synthetic_gated", "synthetic_1x"), "with synthetic")]
)
def test_a_side_that_fails_as_a_whole_ends_the_study(setting, bad, kind):
    with pytest.raises(TrainingError, match=f"no arm {kind}.* could be trained: .*the loss is nan at step 3"):
        studied(setting, PLAIN, *bad)


def test_a_value_that_diverges_is_not_chosen(setting):
    class Tuning(Fake):
        def _trained(self, cell: Cell) -> Trained:
            done = super()._trained(cell)
            return replace(done, failure=WHY) if cell.extra == "tune" and cell.value == 2.0 else done

    fake = Tuning(lambda cell, network: 60 if cell.value == 2.0 else 20 + round(10 * cell.value))
    assert conduct(PLAIN, setting, fake).tuned["real_aug"] == 1.0


def test_what_a_failed_teacher_would_have_taught_is_skipped_too(setting):
    arms = (*PLAIN, "real_mixup", "real_distilled", "pseudo_labels", "active_margin", "oracle")
    study = studied(setting, arms, TEACHER)
    assert set(study.skipped) == {"real_aug", "real_distilled", "pseudo_labels", "active_margin"}
    for arm in ("real_distilled", "pseudo_labels"):
        assert study.skipped[arm] == f"real_aug was to label its images, and its training failed: {WHY}"
    assert "oracle" in study.votes
    assert study.best_real in ("real", "real_mixup")


def test_a_committee_without_its_networks_leaves_the_arm_that_stands_alone(setting):
    class Second(Fake):
        def _trained(self, cell: Cell) -> Trained:
            done = super()._trained(cell)
            return replace(done, failure=WHY) if any(n.member == 1 for n in cell.networks) and "gated" in cell.recipe else done

    arms = ("real_aug", "synthetic_gated", "real_committee", "synthetic_committee")
    study = conduct(arms, setting, Second())
    assert set(study.votes) == {"real_aug", "synthetic_gated", "real_committee"}
    assert "its training failed" in study.skipped["synthetic_committee"]
    assert all(pair[0] == "synthetic_gated" for pair in decisive_pairs(study)), "one network has to beat the committee"


@pytest.mark.parametrize("lost", ["real_aug@all", "synthetic_gated@all"])
def test_a_gain_that_all_labelled_images_cannot_confirm_is_not_used(setting, lost):
    """The comparison that would have decided isn't dropped in silence."""
    arms = ("real_aug", "synthetic_gated", *FOLLOWING)
    whole = reported(studied(setting, arms), setting)
    assert whole.verdict == "use"
    report = reported(studied(setting, arms, lost), setting)
    assert report.verdict == "insufficient evidence"
    assert any("a gain over all labelled images isn't known: " in reason and "failed" in reason for reason in report.reasons)
    control = next(c for c in report.controls if "every labelled image" in c.question)
    assert control.answer.startswith("not run: ")
    assert "the loss is nan at step 3" in control.answer


def test_simulations_and_sizes_that_fail_are_left_out_and_told_of(setting):
    curved = replace(setting, gain=CONFIG.model_copy(update={"curve": True}))
    arms = ("real_aug", "synthetic_gated", "oracle", "active_entropy")
    study = studied(curved, arms, (TEACHER, "oracle"), (TEACHER, "active entropy"), (TEACHER, "size 6"))
    assert set(study.skipped) == {"oracle", "active_entropy"}
    assert 6 not in [size for size, _, _ in study.curve]
    assert len(study.curve) > 1
    report = reported(study, curved)
    assert report.curve is not None
    assert "training failed at 6 images" in report.curve.note
    assert "training failed" not in reported(studied(curved, arms), curved).curve.note


@pytest.mark.parametrize("recipe", ["real_mixup", "svm_pixels", "fixmatch", "synthetic_soft", "synthetic_only"])
def test_any_arm_of_the_full_study_may_fail(setting, recipe):
    study = studied(setting, [arm for arm in ARMS if arm != "real_searched"], recipe)
    assert recipe in study.skipped
    assert reported(study, setting).verdict in ("use", "reject", "insufficient evidence")
