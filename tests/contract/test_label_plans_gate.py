"""The gate on sets of a planned class mix: real images in it are accepted, what the plan wanted and didn't get isn't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import storage
from synthgen.config.load import load
from synthgen.config.schema import GateConfig
from synthgen.errors import DataError
from synthgen.gate.evidence import Real
from synthgen.gate.filters import Sifted, sift
from synthgen.gate.halves import draw_splits
from synthgen.gate.intervals import share_difference, somers_d, weighted_share_difference
from synthgen.gate.judge import judge
from synthgen.gate.least import LEAST
from synthgen.gate.mix import (
    LabelPlan,
    crowding,
    effective,
    expected_dropped,
    in_words,
    planned_mix,
    side_counts,
    strangers,
    weigh,
)
from synthgen.jobs.candidates import label_plan
from synthgen.jobs.gates import check_sizes
from synthgen.jobs.order import Order
from synthgen.types import UNLABELLED, Batch, DatasetSpec, GateReport, Metric
from tests.convention.test_gate_known_answers import IMAGES, LABELS, NAMES, Setting, blurred, make_setting

FILLED = (0, 0, 0, 0, 1, 30, 60, 60, 60, 60)
"""Candidates that fill up digits: four classes are full, one lacks a single image."""
CONFIG = GateConfig(search_px=1, splits=20)
ROLES = ["unlabelled", "labelled"]


@pytest.fixture(scope="module")
def setting() -> Setting:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_setting(0)
    torch.set_num_threads(threads)
    return made


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def truth(setting: Setting) -> np.ndarray:
    """Labels of the reference images."""
    return LABELS[[int(key.split("-")[1]) for key in setting.real.reference.features.keys]]


def reals(setting: Setting, role: str) -> Real:
    """The real images, the reference with or without its labels."""
    given = setting.real.reference
    if role == "unlabelled":
        return setting.real
    return replace(setting.real, reference=replace(given, features=replace(given.features, labels=truth(setting))))


def unseen(setting: Setting, counts: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Rows of real images that nobody saw, so many of each class, mixed."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(setting.unseen[LABELS[setting.unseen] == c])[:n] for c, n in enumerate(counts)]
    return rng.permutation(np.concatenate(rows))


def sifted_and_judged(
    setting: Setting, real: Real, images: np.ndarray, labels: np.ndarray, counts: tuple[int, ...] | None
) -> tuple[Sifted, GateReport]:
    plan = LabelPlan("fill", counts) if counts else None
    candidates = setting.evidence(images, labels)
    sifted = sift(candidates, real, CONFIG, plan=plan)
    return sifted, judge(candidates, real, sifted, CONFIG, NAMES, plan=plan)


def verdict(setting: Setting, real: Real, rows: np.ndarray, counts: tuple[int, ...] | None) -> GateReport:
    return sifted_and_judged(setting, real, IMAGES[rows], LABELS[rows], counts)[1]


def metric(report: GateReport, name: str) -> Metric:
    return next(m for m in report.metrics if m.name == name)


# Real images in the planned mix


@pytest.mark.parametrize("role", ROLES)
def test_real_images_in_a_filled_mix_are_accepted_and_without_the_plan_rejected(setting: Setting, role: str) -> None:
    real, rows = reals(setting, role), unseen(setting, FILLED)
    report = verdict(setting, real, rows, FILLED)
    assert report.verdict == "accept", report.reasons
    assert metric(report, "fid").n >= LEAST["fid"]
    assert report.notices[0].startswith("labels=fill asked for 6 of 10 classes; sets are compared in the planned class mix")
    assert ("by what the judges take them for" in report.notices[0]) == (role == "unlabelled")
    assert [c.note for c in report.classes[:4]] == ["not asked for by labels=fill"] * 4
    foreign = verdict(setting, real, rows, None)
    assert foreign.verdict == "reject"
    assert any(reason.startswith("class '0' has 0 kept candidates of 0, at least 5 are needed") for reason in foreign.reasons)
    assert any(reason.startswith("fid is ") for reason in foreign.reasons)


@pytest.mark.parametrize("counts", [(10, 10, 20, 20, 30, 30, 40, 40, 70, 70), (40,) * 10, (2, 3, *[40] * 8), (45,) * 9 + (0,)])
def test_other_plans_of_real_images_are_accepted(setting: Setting, counts: tuple[int, ...]) -> None:
    report = verdict(setting, setting.real, unseen(setting, counts, seed=1), counts)
    assert report.verdict == "accept", report.reasons
    thin = [told for told in report.notices if "the reference has no more of it" in told]
    assert bool(thin) == (max(counts) == 70)


def test_a_plan_of_classes_that_the_reference_hardly_has_is_refused_by_number(setting: Setting) -> None:
    counts = (0,) * 8 + (130, 130)
    report = verdict(setting, reals(setting, "labelled"), unseen(setting, counts), counts)
    have = int((truth(setting) >= 8).sum())
    assert report.verdict == "insufficient evidence"
    assert f"(300 reference images, {have} of them of the planned classes, and " in metric(report, "fid").note


# What the plan wanted and didn't get


@pytest.mark.parametrize("role", ROLES)
def test_a_planned_class_that_is_missing_or_dropped_rejects(setting: Setting, role: str, rng: np.random.Generator) -> None:
    real, rows = reals(setting, role), unseen(setting, FILLED)
    own = LABELS[rows] == 7
    gone = verdict(setting, real, rows[~own], FILLED)
    assert gone.verdict == "reject"
    assert "class '7' has 0 kept candidates of 0 (60 planned), at least 5 are needed" in gone.reasons
    images = IMAGES[rows].copy()
    images[own] = rng.integers(0, 256, images[own].shape)
    static = sifted_and_judged(setting, real, images, LABELS[rows], FILLED)[1]
    assert static.verdict == "reject"
    assert "class '7' has 0 kept candidates of 60 (60 planned), at least 5 are needed" in static.reasons


def test_of_a_class_that_lacks_few_half_must_be_kept_and_a_single_one_may_be_missing(setting: Setting) -> None:
    rows = unseen(setting, FILLED)
    without = rows[LABELS[rows] != 4]
    alone = verdict(setting, setting.real, without, FILLED)
    assert alone.verdict == "accept", alone.reasons
    assert "class '4': the only candidate asked for is missing, which alone isn't held against the set" in alone.notices
    three = verdict(setting, setting.real, without, (*FILLED[:4], 3, *FILLED[5:]))
    assert three.verdict == "reject"
    assert "class '4' has 0 kept candidates of 0 (3 planned), at least 1 are needed" in three.reasons


def test_defects_are_seen_in_a_planned_mix(setting: Setting, rng: np.random.Generator) -> None:
    rows = unseen(setting, FILLED)
    shuffled = sifted_and_judged(setting, setting.real, IMAGES[rows], rng.permutation(LABELS[rows]), FILLED)[1]
    assert shuffled.verdict == "reject"
    assert shuffled.reasons[0].startswith("label_agreement")
    assert sifted_and_judged(setting, setting.real, blurred(IMAGES[rows]), LABELS[rows], FILLED)[1].verdict == "reject"
    copied = setting.train[np.isin(LABELS[setting.train], np.flatnonzero(FILLED))]
    copies = verdict(setting, setting.real, rng.choice(copied, 270), FILLED)
    assert copies.reasons[0].startswith("copy_share")
    features = setting.evidence(IMAGES[setting.unseen], LABELS[setting.unseen]).features.features
    central = []
    for c in np.flatnonzero(FILLED):
        own = np.flatnonzero(LABELS[setting.unseen] == c)
        distance = np.square(features[own] - features[own].mean(axis=0)).sum(axis=1)
        central.extend(setting.unseen[own[np.argsort(distance)[: FILLED[c] // 2]]])
    few_modes = verdict(setting, setting.real, np.array(central), FILLED)
    assert metric(few_modes, "recall").verdict == "reject"


# How the sets are drawn and weighed


@pytest.mark.parametrize("role", ROLES)
def test_halves_and_candidates_have_the_planned_mix(setting: Setting, role: str) -> None:
    counts = (0,) * 5 + (60,) * 5
    real, rows = reals(setting, role), unseen(setting, counts)
    mix = planned_mix(LabelPlan("fill", counts), real)
    candidates = setting.evidence(IMAGES[rows], LABELS[rows])
    held, made = mix.classes(real.reference), mix.classes(candidates)
    assert mix.by_label == (role == "labelled")
    for a, b, sets in draw_splits(candidates, real, np.ones(len(rows), bool), CONFIG, 0, mix):
        assert len({*a, *b}) == len(a) + len(b)
        assert len(set(np.concatenate(sets))) == sum(len(c) for c in sets)
        wanted = np.bincount(held[b], minlength=10)
        assert (wanted[:4] == 0).all()
        for found in (held[a], *(made[c] for c in sets)):
            assert (np.bincount(found, minlength=10) == wanted).all()
        assert 0.5 * np.abs(wanted / wanted.sum() - mix.weights).sum() < 0.08


def test_a_labelled_reference_takes_the_plans_shares_and_another_what_judges_prefer(setting: Setting) -> None:
    plan = LabelPlan("fill", FILLED)
    assert planned_mix(plan, reals(setting, "labelled")).weights == pytest.approx(plan.share)
    real = setting.real
    train = np.bincount(real.train.labels, minlength=10)
    same = planned_mix(LabelPlan("weak", tuple(train.tolist())), real)
    taken = np.bincount(real.reference.probabilities.argmax(1), minlength=10)
    assert same.weights == pytest.approx(taken / taken.sum()), "the mix of train is the reference's as it is"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 300)), min_size=2, max_size=8), st.integers(0, 400))
def test_a_side_is_as_large_as_the_mix_allows(classes: list[tuple[int, int]], most: int) -> None:
    planned, available = (np.array(column) for column in zip(*classes, strict=True))
    if not planned.any():
        return
    weights = planned / planned.sum()
    counts = side_counts(weights, available, most)
    assert (counts <= available).all()
    assert (counts[planned == 0] == 0).all()
    assert counts.sum() <= most
    if (available >= most).all():
        assert counts.sum() == most
    if counts.sum() > max(LEAST.values()) + 8:  # not a compromise
        assert 0.5 * np.abs(counts / counts.sum() - weights).sum() < 0.12


def test_judges_that_mistake_classes_are_named_where_the_reference_has_no_labels(setting: Setting) -> None:
    """A third of what is taken for a 9 is an 8, and 8s weren't asked for."""
    plan = LabelPlan("fill", (0,) * 9 + (50,))

    def mistaken(evidence, labels):
        eights = np.flatnonzero(labels == 8)
        taken = labels.copy()
        taken[eights[: len(eights) // 2]] = 9
        return replace(evidence, probabilities=np.eye(10)[taken])

    r = setting.real
    real = replace(
        r,
        train=mistaken(r.train, r.train.labels),
        val=mistaken(r.val, r.val.labels),
        reference=mistaken(r.reference, truth(setting)),
    )
    held = np.concatenate([real.val.labels, real.train.labels])
    wrong = sum((e.labels == 8).sum() // 2 for e in (real.val, real.train))
    found = strangers(planned_mix(plan, real), real)
    assert found == pytest.approx(wrong / (wrong + (held == 9).sum()))
    assert found > 0.2
    told = in_words(planned_mix(plan, real), NAMES, np.array([0] * 9 + [20]), real)
    assert told[-1].startswith(f"the judges mistake classes: about {found:.0%} of the reference images compared with")
    labelled = replace(real, reference=reals(setting, "labelled").reference)
    assert strangers(planned_mix(plan, labelled), labelled) == 0


def test_weights_bring_rows_to_a_mix() -> None:
    classes, share = np.array([0, 0, 0, 1, 2]), np.array([0.0, 0.25, 0.75])
    weights = weigh(classes, share)
    assert weights.tolist() == [0, 0, 0, 0.25, 0.75]
    assert effective(weights) == pytest.approx(1.6)
    assert effective(np.full(7, 0.3)) == pytest.approx(7)
    assert effective(np.zeros(7)) == 0


def test_weighted_intervals_are_the_plain_ones_where_weights_are_equal() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)
    assert somers_d(x, y, np.full(60, 0.2)) == pytest.approx(somers_d(x, y))
    often = rng.integers(0, 4, 60)
    assert somers_d(x, y, often.astype(float))[0] == pytest.approx(somers_d(x, np.repeat(y, often))[0])
    hits, reference = rng.random(50) < 0.8, rng.random(70) < 0.9
    equal = weighted_share_difference(hits, reference, np.full(70, 3.0), 70)
    assert equal == pytest.approx(share_difference(hits, reference))


def test_label_agreement_is_compared_with_real_images_of_the_planned_classes(setting: Setting) -> None:
    """Judges that are wrong about half of the 8s and 9s, real or not: it isn't the generator's doing."""
    real, counts = reals(setting, "labelled"), (0,) * 7 + (60, 60, 60)

    def misjudged(evidence):
        wrong = np.isin(evidence.labels, (8, 9)) & (np.arange(len(evidence)) % 2 == 0)
        flat = evidence.probabilities.copy()
        flat[wrong] = np.eye(10)[0]
        return replace(evidence, probabilities=flat)

    real = replace(real, **{role: misjudged(getattr(real, role)) for role in ("train", "val", "reference")})
    rows = unseen(setting, counts)
    candidates = misjudged(setting.evidence(IMAGES[rows], LABELS[rows]))
    plan = LabelPlan("fill", counts)
    planned, plain = (
        metric(judge(candidates, real, sift(candidates, real, CONFIG, plan=p), CONFIG, NAMES, plan=p), "label_agreement")
        for p in (plan, None)
    )
    assert plain.verdict == "reject"
    assert planned.verdict != "reject"
    assert planned.reference == pytest.approx(planned.value, abs=0.08)


def test_shifts_are_read_against_real_images_in_the_planned_mix(setting: Setting) -> None:
    """Every 8, real or not, lies far off: a set with more of them isn't shifted for that."""
    real, counts = reals(setting, "labelled"), (20,) * 8 + (60, 20)
    rows, plan = unseen(setting, counts), LabelPlan("weak", counts)
    candidates = setting.evidence(IMAGES[rows], LABELS[rows])
    sifted = sift(candidates, real, CONFIG, plan=plan)
    held_out = np.concatenate([real.reference.labels, real.val.labels])
    null = sifted.calibration.null | {"support": sifted.calibration.null["support"] + 100 * (held_out == 8)}
    signals = sifted.signals | {"support": sifted.signals["support"] + 100 * (LABELS[rows] == 8)}
    far = replace(sifted, signals=signals, calibration=replace(sifted.calibration, null=null))
    planned, plain = (metric(judge(candidates, real, far, CONFIG, NAMES, plan=p), "support_shift") for p in (plan, None))
    assert planned.value == pytest.approx(0, abs=0.06)
    assert plain.value is not None
    assert plain.value > 0.12


def test_crowded_classes_have_a_stricter_threshold_of_duplicates(setting: Setting) -> None:
    """Among 130 digits of one class real images are as near to each other as among 1,300 of all."""
    assert crowding(None, setting.real.train.labels) == 1
    assert crowding(LabelPlan("balanced", (3,) * 10), setting.real.train.labels) == pytest.approx(1, abs=0.05)
    counts = (0, 130) + (0,) * 8
    rows = unseen(setting, counts)
    planned, plain = (
        sifted_and_judged(setting, setting.real, IMAGES[rows], LABELS[rows], p)[1].reason_counts().get("duplicate", 0)
        for p in (counts, None)
    )
    assert planned <= 3 < plain


def test_what_real_images_would_be_dropped_for_is_read_in_the_planned_mix(setting: Setting) -> None:
    real = reals(setting, "labelled")
    labels = np.concatenate([real.reference.labels, real.val.labels])
    worse = (labels == 8).astype(float)  # of every family but labels the null is reference, then val
    mix = planned_mix(LabelPlan("weak", (0,) * 8 + (30, 10)), real)
    assert expected_dropped(mix, real, "defect", worse, 0.5) == pytest.approx(0.75)
    assert expected_dropped(mix, real, "duplicate", worse, 0.5) == 0


# Where the plan is written, and who has none


def folder(path: Path, about: dict) -> Path:
    path.mkdir()
    (path / "candidates.parquet").touch()
    made = {"generator": "vae", "provenance": {"checkpoint": "0" * 64, "seed": 0}}
    storage.write_json(path / "candidates.json", made | about)
    return path


def test_the_plan_stands_beside_our_candidates_alone(tmp_path: Path) -> None:
    spec = DatasetSpec("pets", (1, 8, 8), ("cat", "dog"), False, "")
    plan = {"labels": "fill", "counts": {"cat": 0, "dog": 7}}
    assert label_plan(folder(tmp_path / "fill", {"plan": plan}), spec) == LabelPlan("fill", (0, 7))
    assert label_plan(folder(tmp_path / "match", {"plan": plan | {"labels": "match"}}), spec) is None
    assert label_plan(folder(tmp_path / "old", {}), spec) is None
    (tmp_path / "foreign" / "cat").mkdir(parents=True)
    assert label_plan(tmp_path / "foreign", spec) is None
    other = folder(tmp_path / "other", {"plan": {"labels": "fill", "counts": {"cow": 3}}})
    with pytest.raises(DataError, match="the class 'cow' is not one of the real images'"):
        label_plan(other, spec)


class Roles:
    """As much of a split as its sizes are read from."""

    def __init__(self, train: list[int], reference: np.ndarray) -> None:
        self.spec = DatasetSpec("pets", (1, 8, 8), ("cat", "dog", "eel"), False, "")
        self.labels = {"train": np.repeat(np.arange(3), train), "reference": reference}

    def role(self, name: str) -> Batch:
        labels = self.labels[name]
        return Batch(np.zeros((len(labels), 1, 8, 8), np.uint8), labels, tuple(map(str, range(len(labels)))))


def test_too_few_reference_images_of_the_classes_to_fill_are_refused_before_anything_runs() -> None:
    def order(fill_to: int) -> Order:
        return Order(load("digits-smoke", ["generate.labels=fill", f"generate.fill_to={fill_to}"]))

    unlabelled = np.full(300, UNLABELLED)
    check_sizes(order(200), Roles([200, 100, 50], unlabelled))
    told = r"about 45 of 300 reference images are of the classes that are filled up \(eel\), and the gate's metrics need 100"
    with pytest.raises(DataError, match=told):
        check_sizes(order(200), Roles([200, 200, 70], unlabelled))
    check_sizes(order(200), Roles([200, 200, 70], np.repeat([0, 2], [200, 100])))
    with pytest.raises(DataError, match="about 99 of 300"):
        check_sizes(order(200), Roles([200, 100, 50], np.repeat([0, 2], [201, 99])))


def test_a_class_that_is_full_is_not_missed_from_checkpoint_to_report(tmp_path: Path, capsys, monkeypatch) -> None:
    from tests.flow.test_cli import QUICK_JUDGES, call

    few = ["split.train=54", "generators.vae.steps=2", "looks.times=0", "generate.num=200", "features.width=8", *QUICK_JUDGES]
    data, made, out = tmp_path / "data", tmp_path / "made", tmp_path / "out"
    assert call(capsys, monkeypatch, "audit", "digits", "--recipe", "digits-smoke", "--out", data, *few)[0] == 0
    assert call(capsys, monkeypatch, "train", data, "vae", *few)[0] == 0
    plan = ["generate.labels=fill", *few]
    code, said = call(capsys, monkeypatch, "generate", data / "train" / "vae", "--real", data, "--out", made, *plan)
    assert code == 0, said
    counts = storage.read_json(made / "candidates.json")["plan"]["counts"]
    assert storage.read_json(made / "candidates.json")["plan"]["labels"] == "fill"
    full = [name for name, count in counts.items() if not count]
    assert 0 < len(full) < 10
    code, said = call(capsys, monkeypatch, "gate", "--real", data, "--candidates", made, "--out", out, *few)
    assert code == 0, said
    report = storage.read_json(out / "gate" / "gate.json")
    assert {c["name"] for c in report["classes"] if c["note"] == "not asked for by labels=fill"} == set(full)
    assert not [reason for reason in report["reasons"] for name in full if reason.startswith(f"class {name!r}")]
