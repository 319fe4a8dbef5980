"""The verdict on a set: whose bound decides, how many images a side, each class by itself, what is noticed, intervals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from synthgen.config.schema import BoundsConfig, GateConfig
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.filters import Sifted, sift
from synthgen.gate.intervals import share_difference, somers_d, wilson
from synthgen.gate.judge import OF_FEATURES, SHIFTING, judge
from synthgen.gate.least import LEAST
from synthgen.types import UNLABELLED, FeatureSet, GateReport, Metric, Planted

NAMES = ("cat", "dog")
PATTERNS = np.random.default_rng(7).normal(size=(8, 1, 8, 8))
CONFIG = GateConfig(splits=20, search_px=0, max_side=125)


def evidence(n: int, seed: int, name: str, defective: float = 0.0, faint: float = 0.0, soft: bool = False) -> Evidence:
    """Two classes in eight latent dimensions, which are the features and make the pixels.

    `defective` is the share (the first ones) whose margins are those of a plain defect, `faint` what all margins rise by;
    `soft` halves half of what varies, in all.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    latent = rng.normal(size=(n, 8))
    latent[:, 0] += np.where(labels == 1, 3, -3)
    if soft:
        latent[:, 4:] *= 0.5
    noise = rng.normal(0, 6, (n, 1, 8, 8))
    images = np.clip(128 + 12 * np.tensordot(latent, PATTERNS, 1) + noise, 0, 255).astype(np.uint8)
    likely = 1 / (1 + np.exp(-2 * latent[:, 0]))
    margins = rng.normal(size=(n, 3)) + faint
    margins[: round(defective * n), 1] += 8
    features = FeatureSet("toy", latent.astype(np.float32), labels, tuple(f"{name}-{i:04d}" for i in range(n)))
    return Evidence(images, features, np.stack([1 - likely, likely], axis=1), margins)


def relabelled(given: Evidence, labels: np.ndarray) -> Evidence:
    return replace(given, features=replace(given.features, labels=labels))


def without_margins(given: Evidence) -> Evidence:
    return replace(given, margins=None)


@pytest.fixture(scope="module")
def real() -> Real:
    reference = evidence(600, 3, "reference")
    soft = evidence(600, 3, "reference", soft=True).features
    return Real(evidence(60, 1, "train"), evidence(60, 2, "val"), reference, soft)


@pytest.fixture(scope="module")
def oracle(real: Real) -> tuple[Evidence, Sifted]:
    candidates = evidence(500, 4, "candidate")
    return candidates, sift(candidates, real, CONFIG)


def said(given: tuple[Evidence, Sifted], real: Real, **settings: Any) -> GateReport:
    return judge(given[0], real, given[1], CONFIG.model_copy(update=settings), NAMES)


def metric(report: GateReport, name: str) -> Metric:
    return next(m for m in report.metrics if m.name == name)


def all_kept(sifted: Sifted) -> Sifted:
    everything = np.ones(len(sifted.kept), dtype=bool)
    return replace(sifted, valid=everything, kept=everything, reasons={})


@pytest.fixture(scope="module")
def accepted(oracle: tuple[Evidence, Sifted], real: Real) -> GateReport:
    return said(oracle, real)


def test_more_of_the_same_is_accepted_and_nothing_is_noticed(accepted: GateReport) -> None:
    assert accepted.verdict == "accept", accepted.reasons
    assert accepted.notices == ()
    assert accepted.reasons[0].startswith("all limits are kept: ")


# A user's own bounds


def test_a_laxer_bound_does_not_matter(oracle: tuple[Evidence, Sifted], real: Real, accepted: GateReport) -> None:
    lax = BoundsConfig(fid=1e6, precision=0.01, recall=0.01, coverage=0.01)
    assert said(oracle, real, bounds=lax) == accepted


@pytest.mark.parametrize(("name", "factor"), [("fid", 0.2), ("precision", 1.2), ("recall", 1.2), ("coverage", 1.2)])
def test_a_stricter_bound_on_the_value_rejects(
    oracle: tuple[Evidence, Sifted], real: Real, accepted: GateReport, name: str, factor: float
) -> None:
    value = metric(accepted, name).value
    assert value is not None
    report = said(oracle, real, bounds=BoundsConfig(**{name: min(factor * value, 1.0)}))
    changed = metric(report, name)
    assert (changed.value, changed.reference) == (value, metric(accepted, name).reference)
    assert changed.limit is not None
    assert changed.reference is not None
    assert changed.limit + changed.reference == pytest.approx(min(factor * value, 1.0))
    assert report.verdict == changed.verdict != "accept"
    assert report.verdict == "reject" or factor * value > 1
    assert report.reasons[0].startswith(f"{name} is ")
    assert f"gate.bounds.{name}: at {'most' if name == 'fid' else 'least'}" in report.reasons[0]


def test_a_bound_makes_a_metric_decide_that_is_shown_only(
    oracle: tuple[Evidence, Sifted], real: Real, accepted: GateReport
) -> None:
    shown = ("kid", "mmd", "density", "vendi")
    assert all(metric(accepted, name).limit is None and name not in accepted.reasons[0] for name in shown)
    kept = said(oracle, real, bounds=BoundsConfig(kid=10, mmd=1, density=0.01, vendi=1))
    assert kept.verdict == "accept"
    assert all(metric(kept, name).limit is not None and name in kept.reasons[0] for name in shown)
    broken = said(oracle, real, bounds=BoundsConfig(kid=-1, mmd=-1, density=100, vendi=1e6))
    assert broken.verdict == "reject"
    for name, reason in zip(shown, broken.reasons, strict=False):
        assert metric(broken, name).verdict == "reject"
        assert reason.startswith(f"{name} is ")
        assert f"gate.bounds.{name}: at {'most' if name in ('kid', 'mmd') else 'least'}" in reason


# Sides


def test_max_side_caps_the_images_a_side(oracle: tuple[Evidence, Sifted], real: Real, accepted: GateReport) -> None:
    assert metric(said(oracle, real, max_side=5000), "fid").n == len(accepted.kept) // 2 < 300
    assert metric(accepted, "fid").n == 125
    assert {c.n for c in accepted.classes} == {c.kept // 2 for c in accepted.classes}
    capped = said(oracle, real, max_side=100)
    assert {metric(capped, name).n for name in ("fid", "kid", "recall", "pixel_recall", "class_conditional_fid")} == {100}
    assert {c.n for c in capped.classes} == {100}
    assert metric(capped, "label_agreement").n == 500


def test_each_metric_has_its_own_fewest_images(real: Real) -> None:
    assert set(LEAST) == {*OF_FEATURES, "class_conditional_fid", *(f"{family}_shift" for family in SHIFTING)}
    assert max(LEAST.values()) <= GateConfig.model_fields["max_side"].metadata[0].ge, "no cap refuses what it lets through"
    candidates = evidence(130, 4, "candidate")
    report = said((candidates, all_kept(sift(candidates, real, CONFIG))), real)
    for name in OF_FEATURES:
        found = metric(report, name)
        assert found.n == 65
        assert (found.value is None) == (LEAST[name] > 65), name
    assert metric(report, "mmd").note == (
        "refused: 65 images a side, at least 75 are needed (600 reference images and 130 kept candidates, at least 150 of each)"
    )
    assert metric(report, "density").note.startswith("refused: 65 images a side, at least 100 are needed (")
    assert report.verdict == "accept", "what is shown only may be missing"
    bounded = said((candidates, all_kept(sift(candidates, real, CONFIG))), real, bounds=BoundsConfig(density=0.01, mmd=1.0))
    assert bounded.verdict == "insufficient evidence"
    assert f"mmd: {metric(report, 'mmd').note}" in bounded.reasons
    assert f"density: {metric(report, 'density').note}" in bounded.reasons


def test_a_shift_has_its_own_fewest_images(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = evidence(130, 4, "candidate")
    sifted = all_kept(sift(candidates, real, CONFIG))
    monkeypatch.setitem(LEAST, "defect_shift", 131)
    report = said((candidates, sifted), real)
    assert metric(report, "support_shift").value is not None
    refused = metric(report, "defect_shift")
    assert refused.value is None
    assert re.fullmatch(r"refused: 130 kept candidates against \d+ real images, at least 131 are needed", refused.note)


# Classes


def test_each_class_has_its_own_figures(accepted: GateReport) -> None:
    assert [c.name for c in accepted.classes] == list(NAMES)
    assert sum(c.candidates for c in accepted.classes) == 500
    assert sum(c.kept for c in accepted.classes) == len(accepted.kept)
    for c in accepted.classes:
        assert set(c.metrics) == set(c.reference) == {"fid", "precision", "recall", "coverage"}
        assert c.note == ""
        assert c.metrics["recall"] == pytest.approx(c.reference["recall"], abs=0.1)
    mean = metric(accepted, "class_conditional_fid")
    assert mean.limit is not None
    assert mean.verdict == "accept"
    assert mean.value == pytest.approx(np.mean([c.metrics["fid"] for c in accepted.classes]))


def test_labels_that_are_exchanged_are_seen_within_classes_alone(oracle: tuple[Evidence, Sifted], real: Real) -> None:
    """Every label is wrong, every sample is kept: no metric of the whole set moves, the class-conditional one does."""
    candidates, sifted = oracle
    swapped = relabelled(candidates, 1 - candidates.labels)
    report = judge(swapped, real, all_kept(sifted), CONFIG, NAMES)
    assert metric(report, "fid").verdict != "reject"
    assert metric(report, "class_conditional_fid").verdict == "reject"
    assert metric(report, "label_agreement").verdict == "reject"
    assert report.verdict == "reject"


def test_a_class_with_too_few_images_is_refused_by_name(oracle: tuple[Evidence, Sifted], real: Real) -> None:
    labels = real.reference.labels.copy()
    labels[np.flatnonzero(labels == 1)[60:]] = UNLABELLED
    thin = replace(real, reference=relabelled(real.reference, labels))
    report = said(oracle, thin)
    cat, dog = report.classes
    assert cat.n >= LEAST["class_conditional_fid"]
    assert (dog.n, dog.metrics, dog.reference) == (0, {}, {})
    assert dog.note == (
        f"refused: 30 images a side, at least 50 are needed (60 labelled reference images and {dog.kept} kept candidates "
        "of 'dog', at least 100 of each)"
    )
    refused = metric(report, "class_conditional_fid")
    assert refused.value is None
    assert refused.note == dog.note
    assert report.verdict == "accept", "a reference without labels isn't held against the candidates"


def test_a_class_without_kept_candidates_rejects(oracle: tuple[Evidence, Sifted], real: Real) -> None:
    candidates, sifted = oracle
    kept = sifted.kept & ((candidates.labels == 0) | (np.arange(500) < 8))
    report = judge(candidates, real, replace(sifted, kept=kept), CONFIG, NAMES)
    assert report.verdict == "reject"
    assert f"class 'dog' has {kept[1::2].sum()} kept candidates of 250, at least 5 are needed" in report.reasons


# Notices


def test_a_fifth_with_a_defect_is_noticed_though_the_rest_is_accepted(real: Real) -> None:
    candidates = evidence(500, 5, "candidate", defective=0.2)
    report = said((candidates, sift(candidates, real, CONFIG)), real)
    assert report.verdict == "accept", report.reasons
    assert re.match(r"2\d\.\d% of the candidates were dropped as 'defect', 0\.9% of real images would be", report.notices[0])


def test_a_faint_defect_of_every_sample_is_noticed(real: Real) -> None:
    candidates = evidence(500, 5, "candidate", faint=0.35)
    report = said((candidates, sift(candidates, real, CONFIG)), real)
    shift = metric(report, "defect_shift")
    assert shift.verdict == "accept"
    assert any(told.startswith("defect_shift is") and "more than chance" in told for told in report.notices)


def test_a_strong_defect_of_every_sample_breaks_the_limit_on_the_shift(real: Real) -> None:
    candidates = evidence(500, 5, "candidate", faint=1.5)
    sifted = sift(candidates, real, CONFIG)
    report = judge(candidates, real, all_kept(sifted), CONFIG, NAMES)
    shift = metric(report, "defect_shift")
    assert shift.value is not None
    assert shift.value > 0.5
    assert report.verdict == shift.verdict == "reject"
    assert said((candidates, all_kept(sifted)), real, max_shift=1.0).verdict == "accept"


def test_what_breaks_its_limit_is_a_reason_and_no_notice(real: Real) -> None:
    candidates = evidence(500, 5, "candidate", soft=True)
    report = said((candidates, all_kept(sift(candidates, real, CONFIG))), real)
    assert metric(report, "fid").verdict == "reject"
    assert report.reasons[0].startswith("fid is ")
    assert not any(told.startswith("fid ") for told in report.notices)


def test_a_shift_of_defects_is_there_with_a_detector_alone(oracle: tuple[Evidence, Sifted], real: Real) -> None:
    candidates = without_margins(oracle[0])
    plain = Real(*(without_margins(e) for e in (real.train, real.val, real.reference)), real.blurred)
    sifted = sift(candidates, plain, CONFIG)
    assert "defect" not in sifted.signals
    report = judge(candidates, plain, sifted, CONFIG, NAMES)
    names = [m.name for m in report.metrics]
    assert "defect_shift" not in names
    assert {"support_shift", "low_level_shift"} <= set(names)
    assert "defect" not in report.thresholds
    assert report.verdict == "accept"


# The budget, and the record


@pytest.mark.parametrize("prefer", ["random", "herding"])
def test_what_a_budget_leaves_out_is_named_and_still_counts_as_valid(
    oracle: tuple[Evidence, Sifted], real: Real, prefer: str
) -> None:
    candidates, unlimited = oracle
    config = CONFIG.model_copy(update={"budget": 120, "prefer": prefer})
    sifted = sift(candidates, real, config)
    report = judge(candidates, real, sifted, config, NAMES)
    assert len(report.kept) == 120
    assert report.selection is not None
    assert (report.selection.prefer, report.selection.offered) == (prefer, int(unlimited.valid.sum()))
    assert report.reason_counts()["beyond the budget"] == unlimited.valid.sum() - 120
    for row in np.flatnonzero(unlimited.valid & ~sifted.kept):
        assert report.dropped[candidates.features.keys[row]] == ("beyond the budget",)
    assert metric(report, "kept_share").value == pytest.approx(unlimited.valid.mean())
    assert metric(report, "fid").n == 60
    assert not any("budget" in told for told in report.notices)


def test_a_report_comes_back_from_its_json(oracle: tuple[Evidence, Sifted], real: Real) -> None:
    config = CONFIG.model_copy(update={"budget": 120, "prefer": "entropy"})
    planted = (Planted("copy", "flip", 50, 0.98, {"copy": 0.98}), Planted("defect", "blur 1", 40, 0.5, {"low-level": 0.5}))
    report = judge(oracle[0], real, sift(oracle[0], real, config), config, NAMES, planted=planted)
    text = json.dumps(report.to_json(), allow_nan=False)
    again = GateReport.from_json(json.loads(text))
    assert again == report
    assert json.dumps(again.to_json()) == text
    assert again.selection == report.selection is not None
    assert again.planted == planted
    assert len(again.classes) == 2


# Intervals


@pytest.mark.parametrize("ties", [False, True])
def test_somers_d_against_brute_force_and_the_area_under_the_curve(ties: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.4, 1, 130), rng.normal(0, 1.5, 90)
    if ties:
        x, y = np.round(x), np.round(y)
    sign = np.sign(x[:, None] - y[None, :])
    d, error = somers_d(x, y)
    assert d == pytest.approx(sign.mean(), abs=1e-12)
    assert d == pytest.approx(2 * roc_auc_score(np.repeat([1, 0], [130, 90]), np.concatenate([x, y])) - 1, abs=1e-12)
    by_hand = sign.mean(axis=1).var(ddof=1) / 130 + sign.mean(axis=0).var(ddof=1) / 90
    assert error == pytest.approx(np.sqrt(by_hand), rel=1e-12)
    assert somers_d(y, x) == pytest.approx((-d, error))


def test_the_error_of_somers_d_is_its_spread_over_draws() -> None:
    rng = np.random.default_rng(0)
    found = np.array([somers_d(rng.normal(0.5, 1, 80), rng.normal(0, 1, 60)) for _ in range(600)])
    assert found[:, 0].std(ddof=1) == pytest.approx(found[:, 1].mean(), rel=0.1)
    assert somers_d(np.arange(50.0) + 100, np.arange(60.0)) == (1.0, 0.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (81, 263), (1, 500)])
def test_wilson_against_scipy(hits: int, n: int) -> None:
    theirs = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_difference_of_shares_as_published() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10."""
    for (hits, n), (others, m), expected in (
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
    ):
        found = share_difference(np.arange(n) < hits, np.arange(m) < others)
        assert found == pytest.approx(expected, abs=1e-4)
        low, high = share_difference(np.arange(m) < others, np.arange(n) < hits)
        assert (-high, -low) == pytest.approx(found)
