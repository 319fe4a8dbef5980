"""What the figures of a study mean: planted predictions on test in, rows, intervals, controls, advice and verdict out."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.errors import DataError
from synthgen.gain.arms import ARMS, QUICK, recipe_of
from synthgen.gain.assess import TestSet as Locked
from synthgen.gain.assess import assess, decisive_pairs
from synthgen.gain.cells import Cell, Network, Setting, Trained, times_of
from synthgen.gain.data import why_not
from synthgen.gain.study import Study, conduct, mean_vote, size_of
from synthgen.gain.verdict import decide, losers
from synthgen.types import UNLABELLED, Batch, ClassGain, DatasetSpec, GainReport, Interval
from tests.conftest import blank_images as images
from tests.conftest import blank_study

NUM_VAL, NUM_TEST = 60, 900
SEEDS = 5
PAIR = ("real_aug", "synthetic_gated")
WHOLE = (*PAIR, "real_committee", "synthetic_committee", "real_trainval", "synthetic_trainval")
"""The fewest arms that "use" can come of."""
CONFIG = GainConfig(seeds=SEEDS, committee=2, large_committee=3, tune_seeds=2, together=10, curve=False, acquire=6)


@pytest.fixture
def setting(toy_spec: DatasetSpec) -> Setting:
    data = replace(blank_study(toy_spec, NUM_VAL, made_in_s=60.0), pool_labels=None)
    return Setting(data, ClassifierConfig(), AugmentConfig(), CONFIG, "cpu")


def predicted(right: np.ndarray, labels: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    found = np.full((len(labels), 3), (1 - confidence) / 2, np.float32)
    found[np.arange(len(labels)), np.where(right, labels, (labels + 1) % 3)] = confidence
    return found


def conducted(
    arms: Sequence[str], setting: Setting, on_val: Mapping[str, int], at: Mapping[tuple[str, float], int] | None = None
) -> Study:
    """A study whose networks are right on so many val images, 40 of 60 if not told: recipe -> number; `at` also by dial."""
    labels = setting.data.val.labels

    def one(cell: Cell, network: Network) -> np.ndarray:
        places = np.random.default_rng([network.seed, len(cell.recipe)]).permutation(NUM_VAL)
        return predicted(places < (at or {}).get((cell.recipe, cell.value), on_val.get(cell.recipe, 40)), labels)

    def train(cells: Sequence[Cell], teachers: Sequence[Cell]) -> dict[Cell, Trained]:
        synthetic = {cell: 126 * cell.recipe.startswith("synthetic") for cell in cells}
        return {
            cell: Trained(
                {},
                np.stack([one(cell, n) for n in cell.networks]),
                12,
                synthetic[cell],
                300,
                2.0 * len(cell.networks),
                0.5,
                {},
                drawn=9600,
            )
            for cell in cells
        }

    return conduct(arms, setting, train)


def planted(
    study: Study, test: Batch, right: Callable[[Cell], float], noise: float = 0.02, changed: float = 0.3
) -> dict[Cell, np.ndarray]:
    """Predictions on test: of each cell right on a share of the images, a little more or less by seed.

    All networks find the same images hard, but for a share `changed` of luck of their own.
    """
    hard = np.random.default_rng(0).random(len(test))
    found = {}
    for number, cell in enumerate(study.trained):
        each = []
        for network in cell.networks:
            draws = np.random.default_rng([number, network.seed, network.member])
            own = np.where(draws.random(len(test)) < changed, draws.random(len(test)), hard)
            share = right(cell) + noise * np.random.default_rng([network.seed, network.member]).uniform(-1, 1)
            each.append(predicted(own < share, test.labels))
        found[cell] = np.stack(each)
    return found


def reported(
    setting: Setting,
    arms: Sequence[str] = PAIR,
    real: float = 0.7,
    synthetic: float = 0.8,
    on_val: Mapping[str, int] | None = None,
    right: Callable[[Cell], float] | None = None,
    test: Locked | None = None,
    **noise: float,
) -> GainReport:
    study = conducted(arms, setting, on_val or {})
    test = test or Locked(images(NUM_TEST, "test"))
    right = right or (lambda cell: synthetic if cell.recipe.startswith("synthetic") else real)
    return assess(study, planted(study, test.images, right, **noise), test, setting)


def interval(difference: float, low: float, high: float, arm="synthetic_gated", baseline="real_aug", needed=30) -> Interval:
    return Interval(arm, baseline, difference, low, high, 10, needed, low, high, 0.01, 0.02, 1.0)


# The decision


@pytest.mark.parametrize(
    ("intervals", "verdict", "said"),
    [
        ([interval(2, 1, 3)], "use", r"\+2\.00 points of test accuracy \(95% interval \+1\.00 to \+3\.00, 10 seeds, 900 test im"),
        ([interval(0.2, 0.1, 0.3)], "use", "synthetic_gated against real_aug"),
        ([interval(-2, -3, -1)], "reject", "synthetic_gated doesn't beat real_aug: it harms"),
        ([interval(0, -0.3, 0.3)], "reject", r"it can't bring 0\.5 points, the smallest gain worth having"),
        ([interval(1, -1, 3)], "insufficient evidence", r"would need about 30 seeds, 20 more"),
        (
            [interval(1, -1, 3, needed=None)],
            "insufficient evidence",
            r"900 test images are too few to settle .* whatever the seeds",
        ),
        ([interval(1, -1, 3, needed=4)], "insufficient evidence", r"would need about 11 seeds, 1 more"),
    ],
)
def test_one_interval_decides(intervals, verdict, said):
    found, reasons = decide(intervals, 0.5, NUM_TEST)
    assert found == verdict
    assert any(re.search(said, reason) for reason in reasons), reasons


ALL_LABELLED = {"arm": "synthetic_trainval", "baseline": "real_trainval"}


@pytest.mark.parametrize(
    ("second", "verdict", "said"),
    [
        (interval(1, 0.5, 2, **ALL_LABELLED), "use", "synthetic_trainval against real_trainval: "),
        (interval(1, -0.5, 2, **ALL_LABELLED), "insufficient evidence", "synthetic_trainval against real_trainval is open"),
        (interval(-1, -2, 0.1, **ALL_LABELLED), "reject", "synthetic_trainval doesn't beat real_trainval: it can't bring"),
        (interval(1, 0.5, 2, baseline="real_mixup"), "use", r"val can't tell 1 other real-only arm from real_aug"),
        (interval(1, -0.5, 2, baseline="real_mixup"), "insufficient evidence", "synthetic_gated against real_mixup is open"),
        (interval(-1, -2, -0.5, baseline="real_mixup"), "reject", "synthetic_gated doesn't beat real_mixup: it harms"),
    ],
)
def test_every_decisive_interval_has_to_hold(second, verdict, said):
    found, reasons = decide([interval(5, 3, 7), second], 0.5, NUM_TEST)
    assert found == verdict
    assert any(re.search(said, reason) for reason in reasons), reasons
    assert "synthetic_gated against real_aug: +5.00" in reasons[0], "the strongest first"


def test_a_gain_of_nothing_is_rejected_even_if_any_gain_is_worth_having():
    assert decide([interval(0, 0, 0)], 0.0, NUM_TEST)[0] == "reject"
    assert decide([interval(0.1, -0.2, 0.4)], 0.0, NUM_TEST)[0] == "insufficient evidence"


def test_who_loses_is_named_whatever_the_whole_does():
    classes = [
        ClassGain("cat", "class", 90, 0.8, 0.7, -10.0, -15.0, -5.0, True),
        ClassGain("dog", "class", 90, 0.8, 0.7, -10.0, -25.0, 5.0, False),
        ClassGain("night", "group", 40, 0.8, 0.6, -20.0, -30.0, -10.0, True),
    ]
    found = losers(classes, "use")
    assert len(found) == 2
    assert found[0].startswith("although the whole gains, the class 'cat' loses 10.00 points (95% interval -15.00 to -5.00, 90 ")
    assert "the group 'night' loses 20.00 points" in found[1]
    assert losers(classes, "reject")[0].startswith("the class 'cat'")


@pytest.mark.parametrize(
    ("synthetic", "verdict"), [(0.80, "use"), (0.55, "reject"), (0.708, "insufficient evidence")], ids=lambda value: str(value)
)
def test_planted_gains_are_judged(setting, synthetic, verdict):
    report = reported(setting, WHOLE, synthetic=synthetic)
    assert report.verdict == verdict
    assert report.decisive[0] == ("synthetic_gated", "real_aug")
    found = next(i for i in report.intervals if (i.arm, i.baseline) == report.decisive[0])
    assert found.difference == pytest.approx(100 * (synthetic - 0.7), abs=2)
    assert found.seeds == SEEDS
    assert any("it harms" in reason for reason in report.reasons) == (verdict == "reject")


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (("real_committee",), "a committee of real-only networks isn't known: add real_committee to gain.arms"),
        (("real_trainval", "synthetic_trainval"), "all labelled images isn't known: add real_trainval and synthetic_trainval to"),
        (("synthetic_trainval",), "all labelled images isn't known: add synthetic_trainval to gain.arms"),
        (("real_aug",), "no real-only network was trained on augmented images; add real_aug to gain.arms"),
    ],
)
def test_use_needs_the_arms_that_could_refute_it(setting, without, said):
    """However large the gain: who didn't ask isn't told yes."""
    assert reported(setting, ("real", *WHOLE), on_val={"real": 30}).verdict == "use"
    report = reported(setting, [arm for arm in ("real", *WHOLE) if arm not in without], on_val={"real": 30})
    assert report.verdict == "insufficient evidence"
    assert any(said in reason for reason in report.reasons), report.reasons
    harmful = reported(setting, [arm for arm in ("real", *WHOLE) if arm not in without], synthetic=0.4)
    assert harmful.verdict == "reject"
    assert not any("add real" in reason for reason in harmful.reasons)


def test_a_gain_over_the_strongest_is_not_enough_if_val_may_have_chosen_wrongly(setting):
    """val prefers real_aug by two images of 60; on test real_mixup is better than it and than the synthetic arm."""
    arms = (*WHOLE, "real_mixup")
    share = {"real_aug": 0.6, "real_mixup": 0.9, "synthetic_gated": 0.8}

    def right(cell: Cell) -> float:
        return share[cell.recipe.removesuffix("@all")]

    report = reported(setting, arms, right=right, on_val={"real_aug": 42})
    assert report.best_real == "real_aug"
    assert {("synthetic_gated", "real_aug"), ("synthetic_gated", "real_mixup")} <= set(report.decisive)
    assert report.verdict == "reject"
    told = reported(setting, arms, right=right, on_val={"real_aug": 59, "real_mixup": 10})
    assert told.verdict == "use", "an arm that val has clearly refused doesn't count"


# Decisive pairs


def test_a_committee_is_compared_with_a_committee(setting):
    arms = (*PAIR, "real_committee", "synthetic_committee", "real_trainval", "synthetic_trainval")
    study = conducted(arms, setting, {})
    assert study.best_real == "real_aug"
    assert decisive_pairs(study) == [
        ("synthetic_gated", "real_aug"),
        ("synthetic_committee", "real_committee"),
        ("synthetic_trainval", "real_trainval"),
    ]
    study.contenders = ["real_committee"]
    assert decisive_pairs(study)[0] == ("synthetic_committee", "real_committee")
    alone = conducted((*PAIR, "real_committee"), setting, {})
    assert ("synthetic_gated", "real_committee") in decisive_pairs(alone)
    assert len(decisive_pairs(conducted((*PAIR, "real_trainval"), setting, {}))) == 1, "half a pair decides nothing"


def test_more_labels_must_be_beaten_too(setting):
    """A gain over train alone that is gone where val is trained on as well."""
    arms = WHOLE
    share = {"real_aug": 0.7, "synthetic_gated": 0.8, "real_aug@all": 0.9, "synthetic_gated@all": 0.85}
    report = reported(setting, arms, right=lambda cell: share[cell.recipe])
    assert report.verdict == "reject"
    control = question(report, "every labelled image that generator, gate or selection saw")
    assert control.alarm
    assert re.match("synthetic_trainval against real_trainval -[4-7]", control.answer)
    share |= {"synthetic_gated@all": 0.96}
    better = reported(setting, arms, right=lambda cell: share[cell.recipe])
    assert better.verdict == "use"
    assert not question(better, "every labelled image").alarm


# Rows


def test_rows_hold_what_was_measured(setting):
    arms = (*PAIR, "real_committee", "real_trainval", "synthetic_committee")
    report = reported(setting, arms)
    assert len(report.rows) == len(arms) * SEEDS
    assert [(row.arm, row.seed) for row in report.rows] == [(arm, seed) for arm in arms for seed in range(SEEDS)]
    by_arm = {row.arm: row for row in report.rows if row.seed == 2}
    # a network 2 s; tuning 3 values of 2 networks, shared by the seeds
    tuning = 3 * 2 * 2.0 / SEEDS
    for arm, networks in (("real_aug", 1), ("real_committee", 2), ("real_trainval", 1), ("synthetic_committee", 2)):
        row = by_arm[arm]
        assert row.networks == networks
        assert row.steps == 300
        assert row.seconds == pytest.approx(2.0 * networks + tuning, abs=1e-3)
        assert row.device_seconds == pytest.approx(0.1 * networks + tuning, abs=1e-3), "tuned on the device too"
        assert (row.num_real, row.num_synthetic) == (12, 126 if arm.startswith("synthetic") else 0)
        assert (row.val is None) == (arm == "real_trainval"), "val was trained on"
    assert by_arm["real_aug"].val.accuracy == pytest.approx(40 / 60)
    assert by_arm["real_aug"].test.recalls is not None
    assert report.recipes["real_committee"] == "real_aug"
    assert report.tuned == {"real_aug": 0.5, "synthetic_gated": 0.25, "real_aug@all": 0.5}


def test_an_arm_is_scored_by_the_vote_of_its_networks():
    one, two = Cell("real_aug", 1.0, (Network(0, 0), Network(0, 1))), Cell("real_aug", 1.0, (Network(0, 2),))
    labels = np.array([0, 1, 2])
    each = [predicted(np.array(right, bool), labels, c) for right, c in (([1, 0, 0], 0.95), ([0, 1, 0], 0.5), ([0, 1, 0], 0.5))]
    found = mean_vote([(one, 0), (one, 1), (two, 0)], {one: np.stack(each[:2]), two: np.stack(each[2:])}.__getitem__)
    assert found == pytest.approx(np.mean(each, axis=0))


def test_a_test_image_without_a_label_is_refused(setting):
    study = conducted(PAIR, setting, {})
    with pytest.raises(DataError, match="test split has images without a label"):
        assess(study, {}, Locked(images(3, "test", [0, UNLABELLED, 1])), setting)


def test_the_record_comes_back_from_its_json(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    test = Locked(images(NUM_TEST, "test"), [None, "day", "night"] * 300, frozenset({"test-003"}))
    full = replace(setting, gain=CONFIG.model_copy(update={"curve": True}))
    for arms, each in ((QUICK, full), (tuple(ARMS), full), (PAIR, setting)):
        report = reported(each, arms, test=test)
        assert GainReport.from_json(json.loads(json.dumps(report.to_json()))) == report
        assert set(report.skipped) | {row.arm for row in report.rows} == set(arms)
        assert (report.curve is not None) == (each is full)


def test_intervals_are_against_the_strongest_and_corrected_for_their_number(setting):
    arms = ("real", "real_aug", "real_mixup", "synthetic_gated", "synthetic_ungated")
    report = reported(setting, arms, on_val={"real_mixup": 59})
    against = [i for i in report.intervals if i.baseline == "real_mixup"]
    assert {i.arm for i in against} == set(arms) - {"real_mixup"}
    assert all(i.p_holm >= i.p for i in against)
    assert max(i.p_holm / i.p for i in against if i.p > 0) == pytest.approx(4) or any(i.p_holm == 1 for i in against)
    assert set(report.decisive) <= {(i.arm, i.baseline) for i in report.intervals}


# Classes and groups


def test_a_class_and_a_group_that_lose_are_warned_of(setting):
    """Whoever gains on the whole but loses one class, or the images taken at night."""
    groups = ["night" if i % 9 == 1 else None for i in range(NUM_TEST)]
    test = Locked(images(NUM_TEST, "test"), groups, blocks=np.arange(NUM_TEST))
    study = conducted(WHOLE, setting, {})
    found = {}
    for cell in study.trained:
        each = []
        for network in cell.networks:
            lucky = np.random.default_rng(network.seed).random(NUM_TEST) < 0.9
            number = np.arange(NUM_TEST)
            hard = (number % 9 == 1) | (number % 12 == 2) if cell.recipe.startswith("synthetic") else test.images.labels == 0
            right = lucky & ~hard
            each.append(predicted(right, test.images.labels))
        found[cell] = np.stack(each)
    report = assess(study, found, test, setting)
    harmed = {(c.kind, c.name) for c in report.classes if c.harmed}
    assert harmed == {("class", "c"), ("class", "b"), ("group", "night")}
    assert {(c.kind, c.name) for c in report.classes} == {*(("class", n) for n in "abc"), ("group", "night")}
    assert report.verdict == "use"
    assert any("although the whole gains, the group 'night' loses" in reason for reason in report.reasons), report.reasons
    assert any("the class 'c' loses" in reason for reason in report.reasons)
    row = report.rows[0]
    assert row.test.worst_group is not None
    assert reported(setting).rows[0].test.worst_group is None, "images without groups"


# Controls


def question(report: GainReport, said: str):
    (found,) = [control for control in report.controls if said in control.question]
    return found


def test_equal_steps_and_unequal_ones(setting):
    equal = question(reported(setting), "train as long")
    assert (equal.alarm, equal.answer) == (False, "every network took 300 steps and drew 9,600 images in them")
    test = Locked(images(NUM_TEST, "test"))

    def control(arms: Sequence[str], **longer: tuple[int, int]):
        study = conducted(arms, setting, {})
        for cell in [cell for cell in study.trained if cell.recipe in longer]:
            steps, drawn = longer[cell.recipe]
            study.trained[cell] = replace(study.trained[cell], steps=steps, drawn=drawn)
        return question(assess(study, planted(study, test.images, lambda cell: 0.7), test, setting), "train as long")

    more_steps = control(WHOLE, synthetic_gated=(600, 9600))
    assert more_steps.alarm
    assert "but synthetic_gated and synthetic_committee 600 steps and 9,600 images" in more_steps.answer
    assert control(WHOLE, synthetic_gated=(300, 19200)).alarm, "as many steps of larger batches"
    rival = control((*WHOLE, "fixmatch"), synthetic_gated=(300, 19200), fixmatch=(300, 19200))
    assert not rival.alarm, "a real-only arm that may be the strongest drew as many"
    assert not control(WHOLE, real_aug=(600, 19200)).alarm, "the real-only side may train longer"


@pytest.mark.parametrize(("with_copies", "alarm"), [(0.9, True), (0.8, False), (0.7, False)])
def test_a_gain_by_copies_is_an_alarm(setting, with_copies, alarm):
    arms = (*PAIR, "synthetic_with_copies")
    share = {"real_aug": 0.7, "synthetic_gated": 0.8, "synthetic_with_copies": with_copies}
    control = question(reported(setting, arms, right=lambda cell: share[cell.recipe]), "copies of the training images")
    assert control.alarm == alarm
    assert "with the copies left in: synthetic_with_copies against synthetic_gated" in control.answer


def test_copies_that_were_not_studied_are_said_to_be(setting):
    said = question(reported(setting), "copies").answer
    assert said.endswith("not run: gain.study=full has it, or add synthetic_with_copies to gain.arms")
    none = replace(setting, data=replace(setting.data, with_copies=setting.data.gated))
    assert "it would equal synthetic_gated" in question(reported(none, (*PAIR, "synthetic_with_copies")), "copies").answer


@pytest.mark.parametrize(("distilled", "alarm"), [(0.85, True), (0.7, False)])
def test_a_gain_by_the_teacher_is_an_alarm(setting, distilled, alarm):
    arms = (*PAIR, "real_distilled", "synthetic_soft")
    share = {"real_aug": 0.7, "synthetic_gated": 0.8, "synthetic_soft": 0.82, "real_distilled": distilled}
    assert question(reported(setting, arms, right=lambda cell: share[cell.recipe]), "the teacher").alarm == alarm


def test_a_gain_that_near_duplicates_make_is_an_alarm(setting):
    """300 test images have a twin in train, and the synthetic arm is right on all of them, and worse on the rest."""
    test = Locked(images(NUM_TEST, "test"), near=frozenset(f"test-{i:03d}" for i in range(300)))
    study = conducted(WHOLE, setting, {})
    found = planted(study, test.images, lambda cell: 0.65 if cell.recipe.startswith("synthetic") else 0.7)
    for cell in found:
        if cell.recipe.startswith("synthetic"):
            found[cell][:, :300] = predicted(np.ones(300, bool), test.images.labels[:300])
    report = assess(study, found, test, setting)
    assert report.verdict == "insufficient evidence"
    assert "it isn't shown on test images without a near duplicate among those trained on: 300 have one; " in report.reasons[-1]
    assert assess(study, found, replace(test, near=frozenset()), setting).verdict == "use", "a gain, if nobody looks"
    control = question(report, "near duplicates of training images")
    assert control.alarm
    assert control.answer.startswith("300 have one; without them ")
    for pair in report.decisive:
        assert re.search(rf"{pair[0]} against {pair[1]} -[\d.]+ points \(-[\d.]+ to ", control.answer), control.answer
    row = report.rows[0]
    assert row.clean is not None
    assert row.clean == pytest.approx(
        found[study.votes["real_aug"][0][0][0]][0, 300:].argmax(1).__eq__(test.images.labels[300:]).mean()
    )


def test_samples_that_show_the_test_images_bring_no_gain(setting):
    """Their generator was trained on 300 of the test images: the arm with them is right on those, and gains on no other."""
    shown = frozenset(f"test-{i:03d}" for i in range(300))
    test = Locked(images(NUM_TEST, "test"), given_away=shown)
    study = conducted(WHOLE, setting, {})
    found = planted(study, test.images, lambda cell: 0.7)
    for cell in found:
        if cell.recipe.startswith("synthetic"):
            found[cell][:, :300] = predicted(np.ones(300, bool), test.images.labels[:300])
    report = assess(study, found, test, setting)
    assert report.verdict == "insufficient evidence"
    control = question(report, "near duplicates of training images")
    assert control.alarm
    assert control.answer.startswith("300 have one, 300 among the synthetic images; without them ")
    for outside in ({"unknown_start": True}, {"made_in_s": 0.0}):
        foreign = replace(setting, data=replace(setting.data, **outside))
        answer = question(assess(study, found, test, foreign), "near duplicates").answer
        assert answer.startswith("300 have one, 300 among the synthetic images, whose generator may have seen them; without")
        nobody = question(assess(study, found, Locked(test.images), foreign), "near duplicates").answer
        assert nobody.endswith("the samples that the gate kept; all that their generator was trained on isn't known here")


UNLIKE = {
    "pool_labels": (True, False, "the generator had the labels of a pool, and no real-only network did: add pool_labels to"),
    "transfer": (False, True, "the generator had weights from elsewhere, and no real-only network did: add transfer to"),
    "transfer_pool": (True, True, "had the labels of a pool and weights from elsewhere, .*: add transfer_pool to"),
}


@pytest.mark.parametrize("arm", UNLIKE)
def test_use_needs_a_rival_that_had_what_the_generator_had(setting, toy_spec, arm):
    """Else a teacher's work, or that of a pre-trained network, is taken for the samples'."""
    pooled, elsewhere, said = UNLIKE[arm]
    labels = blank_study(toy_spec, NUM_VAL).pool_labels if pooled else None
    informed = replace(setting, data=replace(setting.data, pool_labels=labels, elsewhere=elsewhere))
    report = reported(informed, WHOLE)
    assert report.verdict == "insufficient evidence"
    assert re.search(said, report.reasons[-1]), report.reasons
    assert reported(informed, WHOLE, synthetic=0.4).verdict == "reject"
    for other in (*UNLIKE, "transfer_probe"):  # which is no network
        why = why_not(other, informed.data)
        if not why:
            enough = other == arm or other == "transfer_pool"
            verdict = reported(informed, (*WHOLE, other), on_val={other: 30}).verdict
            assert verdict == ("use" if enough else "insufficient evidence"), other


def test_without_near_duplicates_and_with_nothing_else(setting):
    none = question(reported(setting), "near duplicates")
    seen = "among the real images that arms may see, or the samples that the gate kept"
    assert (none.alarm, none.answer) == (False, f"no test image has a near duplicate {seen}")
    every = reported(setting, test=Locked(images(NUM_TEST, "test"), near=frozenset(f"test-{i:03d}" for i in range(NUM_TEST))))
    assert question(every, "near duplicates").alarm
    assert all(row.clean is None for row in every.rows)
    few = reported(setting, test=Locked(images(NUM_TEST, "test"), near=frozenset(f"test-{i:03d}" for i in range(5))))
    clean = [row for row in few.rows if row.arm == "real_aug"]
    assert np.mean([row.clean for row in clean]) == pytest.approx(np.mean([row.test.accuracy for row in clean]), abs=0.01)
    assert not question(few, "near duplicates").alarm
    groups = ["p" if i > 4 else f"q{i}" for i in range(NUM_TEST)]
    one = reported(
        setting, test=replace(Locked(images(NUM_TEST, "test"), groups), near=frozenset(f"test-{i:03d}" for i in range(5)))
    )
    assert question(one, "near duplicates").alarm
    assert "the others are of a single group" in question(one, "near duplicates").answer


def test_every_deciding_comparison_is_told_without_near_duplicates(setting):
    arms = ("real_aug", "real_mixup", "synthetic_gated")
    test = Locked(images(NUM_TEST, "test"), near=frozenset(f"test-{i:03d}" for i in range(300)))
    share = {"real_aug": 0.7, "real_mixup": 0.7, "synthetic_gated": 0.9}
    report = reported(setting, arms, right=lambda cell: share[cell.recipe], test=test)
    control = question(report, "near duplicates of training images")
    assert len(report.decisive) == 2
    for arm, base in report.decisive:
        assert re.search(rf"{arm} against {base} \+[\d.]+ points \(\+[\d.]+ to \+[\d.]+\)", control.answer), control.answer
    assert not control.alarm


def test_the_oracle_says_what_real_images_would_bring(setting):
    report = reported(setting, (*PAIR, "oracle"), right=lambda cell: 0.9 if cell.extra == "oracle" else 0.75)
    control = question(report, "What would 12 real images bring instead?")
    assert re.match(r"oracle against real_aug \+1[3-9]", control.answer)
    assert ("oracle", "real_aug") not in report.decisive, "a simulation decides nothing"


@pytest.mark.parametrize(("committee", "alarm"), [(0.9, True), (0.6, False)])
def test_a_larger_committee_beside_what_generator_and_gate_cost(setting, committee, alarm):
    arms = (*PAIR, "real_committee_large")
    study = conducted(arms, setting, {})
    test = Locked(images(NUM_TEST, "test"))
    found = planted(study, test.images, lambda cell: 0.8 if cell.recipe == "synthetic_gated" else committee)
    control = question(assess(study, found, test, setting), "larger real-only committee do as well")
    assert control.alarm == alarm
    # 3 networks of 2 s and the tuning's share; 60 s of generator and gate before the synthetic network
    assert "its 3 networks cost 8 s, the synthetic side 64 s, which is what about 31 networks would cost" in control.answer
    assert "gain.large_committee=31" in control.answer, "equal training cost"


def test_luck_is_an_alarm_where_an_interval_is_open(setting):
    sure, open_ = (question(reported(setting, synthetic=share), "luck of seeds") for share in (0.85, 0.705))
    assert (sure.alarm, open_.alarm) == (False, True)
    assert re.search(r"synthetic_gated against real_aug: p < \.001, bootstrap \+\d.*, d = ", sure.answer)


# Advice


def advised(report: GainReport, said: str) -> str:
    (found,) = [line for line in report.advice if said in line]
    return found


def test_the_cheapest_equal_real_only_arm_is_named(setting):
    arms = ("real_aug", "real_committee", "synthetic_gated")
    share = {"real_aug": 0.8, "synthetic_gated": 0.85}
    report = reported(setting, arms, right=lambda cell: share[cell.recipe])
    line = advised(report, "strongest of real images alone")
    assert line.startswith(f"strongest of real images alone: {report.best_real}, ")
    assert "synthetic_gated" not in line


def test_the_gain_a_minute_counts_generator_and_gate(setting):
    line = advised(reported(setting), "points a minute")
    found = re.search(
        r"real_aug \+([\d.]+) points \(\+([\d.]+) to .* for 60 s of generator and gate and 4\.4 s a network: "
        r"\+([\d.]+) points a minute \(\+([\d.]+) to ",
        line,
    )
    assert found, line
    for points, a_minute in ((found[1], found[3]), (found[2], found[4])):
        assert float(a_minute) == pytest.approx(float(points) / (64.4 / 60), abs=0.02)
    foreign = replace(setting, data=replace(setting.data, made_in_s=0.0))
    assert "what the images took isn't known here" in advised(reported(foreign), "s a network")
    larger = question(reported(foreign, (*PAIR, "real_committee_large")), "larger real-only committee").answer
    assert larger.endswith("what the synthetic images took isn't known here")


def test_the_advice_tells_whether_the_samples_can_stand_in(setting):
    below = "more than 2 points below"
    for alone, said in ((0.85, "at most 2 points below"), (0.79, f"perhaps {below}"), (0.6, f"), {below}")):
        share = {"synthetic_only": alone, "real_aug": 0.8, "synthetic_gated": 0.8}
        report = reported(setting, (*PAIR, "synthetic_only"), right=lambda cell, share=share: share[cell.recipe])
        assert advised(report, "instead of the real images").endswith(said)


def test_more_steps_of_real_images_are_told(setting):
    share = {"real_aug": 0.7, "real_longer": 0.8, "synthetic_gated": 0.85}
    report = reported(setting, (*PAIR, "real_longer"), right=lambda cell: share[cell.recipe])
    found = r"More steps, [124] times as many at the usual strength of augmentation: real_longer against real_aug \+\d"
    assert re.search(found, question(report, "train as long").answer)


def test_longer_training_is_a_rival_with_all_that_follows(setting):
    arms = (*WHOLE, "real_longer", "synthetic_partner")
    curved = replace(setting, gain=CONFIG.model_copy(update={"curve": True}))
    study = conducted(arms, curved, {"real_longer": 55}, {("real_longer", 4.0): 58})
    assert study.single_real == "real_longer"
    value = study.tuned["real_longer"]
    assert value == 4.0
    partner = study.recipes["synthetic_partner"]
    assert times_of(Cell(partner, 0.5, (Network(0, 0),)), recipe_of(partner)) == value
    for arm in ("real_committee", "real_trainval"):
        cell = study.votes[arm][0][0][0]
        assert cell.recipe.removesuffix("@all") == "real_longer"
        assert times_of(cell, recipe_of(cell.recipe)) == value
    assert study.curve_recipe == "real_aug", "at equal steps"
    test = Locked(images(NUM_TEST, "test"))
    sizes = {f"size {n}": share for n, share in zip((3, 6, 24, 48, 72, 87), (0.5, 0.6, 0.75, 0.8, 0.85, 0.88), strict=False)}
    found = planted(study, test.images, lambda cell: sizes.get(cell.extra, 0.78 if "synthetic" in cell.recipe else 0.7))
    report = assess(study, found, test, curved)
    assert report.curve is not None
    assert {each.arm for each in report.curve.exchange} == {"synthetic_gated"}, (
        "what longer training brings isn't the samples' worth"
    )
    usual = size_of(recipe_of("synthetic_gated"), 16)
    assert size_of(recipe_of("real_searched[depth=1,width=16]"), 16) == usual, "though it names what it is"
    assert size_of(recipe_of("real_searched[depth=2,width=16]"), 16) != usual


def test_longer_training_that_is_the_same_is_left_out(setting):
    study = conducted((*PAIR, "real_longer"), setting, {}, {("real_longer", 1.0): 50, ("real_aug", 1.0): 50})
    assert (study.tuned["real_longer"], study.tuned["real_aug"]) == (1.0, 1.0)
    assert study.skipped["real_longer"] == "val chose no more steps: it is real_aug"
    assert "real_longer" not in study.votes


def test_a_gain_over_the_labels_that_the_generator_had_is_not_the_teachers(setting, toy_spec):
    pooled = replace(setting, data=replace(setting.data, pool_labels=blank_study(toy_spec, NUM_VAL).pool_labels))
    for labels, alarm in ((0.85, True), (0.7, False)):
        share = {"real_aug": 0.7, "synthetic_pool": 0.82, "pool_labels": labels, "synthetic_gated": 0.8}
        arms = (*PAIR, "pool_labels", "synthetic_pool")
        control = question(reported(pooled, arms, right=lambda cell, share=share: share[cell.recipe]), "the teacher")
        assert (control.alarm, control.answer.startswith("synthetic_pool against pool_labels")) == (alarm, True)


def test_the_best_way_of_labelling_more(setting):
    arms = (*PAIR, "active_random", "active_margin", "active_entropy")
    report = reported(setting, arms, right=lambda cell: {"active margin": 0.9}.get(cell.extra, 0.8))
    line = advised(report, "images to label next")
    found = (
        r"of 6 images to label next, margin would have found the best: active_margin against active_random \+[\d.]+ points \(\+"
    )
    assert re.match(found, line), line


def test_a_way_of_labelling_that_luck_alone_put_first_is_not_praised(setting):
    arms = (*PAIR, "active_random", "active_margin", "active_entropy")
    report = reported(setting, arms, right=lambda cell: {"active margin": 0.805}.get(cell.extra, 0.8))
    line = advised(report, "images to label next")
    assert line.endswith("no way of choosing is told apart from random choice, neither margin nor entropy (simulated)"), line
    without = reported(setting, (*PAIR, "active_margin", "active_entropy"))
    assert not any("to label next" in line for line in without.advice), "there is nothing to compare with"


# Groups


def test_a_gain_on_a_few_patients_is_no_gain_on_patients(setting):
    """Right on half of the patients, wrong on the others: a point more over 900 images, and nobody knows of the next patient."""
    patients = [f"p{i // 45}" for i in range(NUM_TEST)]
    study = conducted(WHOLE, setting, {})
    plain, grouped = (Locked(images(NUM_TEST, "test"), given) for given in (None, patients))
    liked = np.isin(np.arange(NUM_TEST) // 45, np.random.default_rng(0).permutation(20)[:11])

    def lucky(cell: Cell) -> np.ndarray:
        draws = [np.random.default_rng(n.seed).random(NUM_TEST) for n in cell.networks]
        share = np.where(liked, 0.95, 0.55) if cell.recipe.startswith("synthetic") else np.full(NUM_TEST, 0.7)
        return np.stack([predicted(each < share, plain.images.labels) for each in draws])

    found = {cell: lucky(cell) for cell in study.trained}
    by_image, by_group = (assess(study, found, test, setting) for test in (plain, grouped))
    assert (by_image.verdict, by_group.verdict) == ("use", "insufficient evidence")
    assert "5 seeds, 900 test images in 20 groups)" in by_group.reasons[0]
    assert any("900 test images in 20 groups are too few" in reason for reason in by_group.reasons)
    assert "groups" not in by_image.reasons[0]
    assert {a.arm for a in by_group.accuracies} == set(WHOLE)
    for one, other in zip(by_image.accuracies, by_group.accuracies, strict=True):
        assert one.accuracy == other.accuracy
        assert other.low <= other.accuracy <= other.high
    assert by_group.accuracies[1].high - by_group.accuracies[1].low > 2 * (
        by_image.accuracies[1].high - by_image.accuracies[1].low
    )


def test_near_duplicates_of_one_another_count_as_a_block(setting):
    """The blocks of the split come first; where nobody gives them, groups."""
    test = Locked(images(NUM_TEST, "test"), ["a", None] * 450)
    assert test.clusters is not None
    assert len(np.unique(test.clusters)) == 451
    blocks = np.arange(NUM_TEST) // 2
    assert replace(test, blocks=blocks).clusters is blocks
    assert Locked(images(NUM_TEST, "test")).clusters is None


# The learning curve


def test_the_curve_says_what_synthetic_images_are_worth(setting):
    """Real-only accuracy 50, 60, 70, 75, 80, 82, 84% at 3, 6, 12, ... images; the synthetic arm has 80% with 12."""
    given = replace(setting, gain=CONFIG.model_copy(update={"curve": True, "next_images": 12}))
    at = {"size 3": 0.5, "size 6": 0.6, "size 24": 0.75, "size 48": 0.80, "size 72": 0.82, "size 87": 0.84}

    def right(cell: Cell) -> float:
        return 0.78 if cell.recipe == "synthetic_gated" else at.get(cell.extra, 0.70)

    report = reported(given, right=right, noise=0.0, changed=0.0)
    assert report.curve is not None
    assert report.curve.recipe == "real_aug"
    assert [point.num_real for point in report.curve.points] == [3, 6, 12, 24, 48, 72, 87]
    assert [point.source for point in report.curve.points] == [*["train"] * 3, *["train and val"] * 3, "hidden labels"]
    for point in report.curve.points:
        assert np.mean(point.accuracies) == pytest.approx(at.get(f"size {point.num_real}", 0.7), abs=0.03)
    (exchange,) = report.curve.exchange
    assert (exchange.arm, exchange.num_real) == ("synthetic_gated", 12)
    assert exchange.equivalent is not None
    assert 24 < exchange.equivalent < 48
    assert advised(report, "12 more labelled real images would bring about").startswith("12 more")
    assert reported(setting).curve is None


def test_a_curve_that_is_flat_says_that_more_images_hardly_help(setting):
    given = replace(setting, gain=CONFIG.model_copy(update={"curve": True, "next_images": 12}))
    flat = reported(given, real=0.8, synthetic=0.8, noise=0.0, changed=0.0)
    assert advised(flat, "hardly help any more")


def test_the_classes_to_collect_are_those_whose_recall_rises(setting):
    """Class a rises with the number of images, the others don't."""
    given = replace(setting, gain=CONFIG.model_copy(update={"curve": True, "next_images": 12}))
    study = conducted(PAIR, given, {})
    test = Locked(images(NUM_TEST, "test"))
    found = {}
    for cell in study.trained:
        size = int(cell.extra.split()[1]) if cell.extra else 12
        each = []
        for network in cell.networks:
            draws = np.random.default_rng([size, network.seed])
            share = np.where(test.images.labels == 0, 1 - 1.0 * size**-0.4, 0.8)
            each.append(predicted(draws.random(NUM_TEST) < share, test.images.labels))
        found[cell] = np.stack(each)
    line = advised(assess(study, found, test, given), "classes that would gain most recall")
    assert re.match(r"classes that would gain most recall from the next 12 real images: a \(\+[\d.]+, ", line), line


@pytest.mark.parametrize(("alone", "alarm"), [(0.78, False), (0.6, True)])
def test_images_that_could_be_given_away(setting, alone, alarm):
    arms = (*PAIR, "synthetic_only")
    study = conducted(arms, setting, {})
    test = Locked(images(NUM_TEST, "test"))
    found = planted(study, test.images, lambda cell: alone if cell.recipe == "synthetic_only" else 0.7)
    control = question(assess(study, found, test, setting), "given away")
    assert control.alarm == alarm
    assert "synthetic_only against real_aug" in control.answer
