"""Planted sets on digits with small networks: what the gate says of copies, wrong labels, a collapse and the like."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
import torch

from synthgen import jobs
from synthgen.config.load import load
from synthgen.data.planted import COPIES, DEFECTS
from synthgen.errors import DataError
from synthgen.gate import signals
from synthgen.gate.sensitivity import planted_recall
from synthgen.jobs.gates import Judging
from synthgen.jobs.known_answers import Answer, KnownAnswers, Pool, joined
from synthgen.randomness import stream
from synthgen.types import Batch

NUM = 240
SETTINGS = [
    *("features.steps=100", "features.width=12", "features.folds=2", "features.defect_steps=60", "features.cache=false"),
    *("gate.splits=20", "gate.planted=20", "tracking=off"),
]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> KnownAnswers:
    torch.set_num_threads(1)
    config, folder = load("digits", SETTINGS), tmp_path_factory.mktemp("known")
    order = jobs.Order(config)
    jobs.audit(order, folder)
    split = jobs.Split.open(folder)
    jobs.features(order, split, folder / "features")
    judging = Judging(order, split, folder / "features")
    nobody = Batch(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64), ())
    return KnownAnswers(judging.real(), split.role("test"), nobody, judging.evidence, config.gate, split.spec.class_names, NUM)


@pytest.fixture(scope="module")
def copies(asking: KnownAnswers) -> Pool:
    train = asking.real.train
    rows = np.arange(NUM) % len(train)
    images = COPIES["shift 1 px"](train.images[rows], stream(0, "copies"))
    return asking.pool(Batch(images, train.labels[rows], tuple(f"copy-{i}" for i in range(NUM))))


def named(asking: KnownAnswers, name: str) -> Answer:
    ((found, rows),) = [(found, rows) for found, rows in asking.narrowed() if found.startswith(name)]
    return asking.answer(found, asking.good.take(rows, "good"), 0)


def test_other_real_images_are_not_rejected(asking: KnownAnswers) -> None:
    answer = asking.answer("none", asking.good.take(np.arange(NUM), "good"), 0)
    assert answer.verdict != "reject"
    assert answer.broken == ()
    assert answer.notices == ()
    assert answer.kept > 0.85
    assert (answer.share, answer.n, answer.found, answer.auroc) == (0, NUM, None, {})
    assert answer.good_dropped == pytest.approx(1 - answer.kept)


def test_copies_are_found_and_the_set_is_rejected(asking: KnownAnswers, copies: Pool) -> None:
    alone, fifth = asking.mixed("copies", copies, (1.0, 0.2))
    for answer in (alone, fifth):
        assert answer.verdict == "reject"
        assert "copy_share" in answer.broken
        assert answer.found is not None
        assert answer.found > 0.9
        assert max(answer.reasons, key=answer.reasons.__getitem__) in ("copy", "duplicate")
        assert answer.reasons["copy"] > 0.85
        assert answer.seen
    assert (alone.share, alone.good_dropped, alone.auroc) == (1, None, {})
    assert fifth.share == pytest.approx(0.2)
    assert fifth.good_dropped is not None
    assert fifth.good_dropped < 0.15
    assert fifth.auroc["copy"] > 0.97


def test_wrong_labels_are_found_by_label(asking: KnownAnswers) -> None:
    wrong = asking.wrong_labels()
    assert (wrong.evidence.labels != asking.good.evidence.labels).all()
    (half,) = asking.mixed("wrong labels", wrong, (0.5,))
    assert half.verdict == "reject"
    assert "label_agreement" in half.broken
    assert next(iter(half.reasons)) == "label"
    assert half.reasons["label"] > 0.5
    assert half.auroc["label"] > 0.9
    assert 0.3 < half.auroc["copy"] < 0.7, "pixels know nothing of labels"


def test_of_one_class_no_label_can_be_wrong_and_no_class_be_dropped(
    asking: KnownAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = copy(asking)
    alone.class_names = ("digit",)
    alone.unseen = Batch(asking.unseen.images, np.zeros(NUM, np.int64), asking.unseen.keys)
    with pytest.raises(DataError, match="one class only, 'digit'; no label can be wrong"):
        alone.wrong_labels()
    monkeypatch.setattr(KnownAnswers, "answer", lambda self, name, *_, **__: name)
    monkeypatch.setattr(KnownAnswers, "mixed", lambda self, name, *_: iter([name]))
    left_out = set(asking.answers()) - set(alone.answers())
    assert left_out == {"wrong labels", "a class dropped"}


def test_a_dropped_class_is_named(asking: KnownAnswers) -> None:
    answer = named(asking, "a class dropped")
    commonest = np.bincount(asking.unseen.labels).argmax()
    assert answer.verdict == "reject"
    assert str(commonest) in answer.broken
    assert not {str(digit) for digit in range(10) if digit != commonest} & set(answer.broken)


def test_a_collapse_is_rejected(asking: KnownAnswers) -> None:
    answer = named(asking, "collapse")
    assert answer.verdict == "reject"
    assert answer.kept <= 10 / answer.n
    assert answer.reasons["duplicate"] > 0.9
    assert "kept_share" in answer.broken


def test_the_narrowed_sets_leave_out_what_they_say(asking: KnownAnswers) -> None:
    sets, labels = dict(asking.narrowed()), asking.unseen.labels
    sizes = {name.split(":")[0]: len(rows) for name, rows in sets.items()}
    assert sizes["the quarter nearest the class mean"] == pytest.approx(NUM / 4, abs=10)
    assert sizes["a mode dropped"] == pytest.approx(NUM / 2, abs=NUM / 8)
    for name, rows in sets.items():
        assert len(set(labels[rows])) == (9 if name == "a class dropped" else 10)
    assert len(np.unique(sets["collapse: one image a class"])) == 10


def test_duplicates_count_as_found_when_either_of_a_pair_is_dropped(asking: KnownAnswers) -> None:
    answers = list(asking.duplicated())
    assert [answer.share for answer in answers] == pytest.approx([0.05, 0.2, 0.5], abs=0.005)
    for answer in answers:
        assert answer.n == NUM
        assert answer.found is not None
        assert answer.found > 0.85
    assert answers[0].auroc["duplicate"] > 0.85  # at larger shares most of the others are partners, which are as near
    assert answers[1].good_dropped is not None
    assert answers[1].good_dropped < 0.2
    assert any("duplicate" in notice for notice in answers[1].notices)


def test_joined_pools_have_the_signals_of_one_pool(asking: KnownAnswers) -> None:
    """Only a duplicate depends on what stands beside it; bits may differ where a network sees other batches."""
    defects = Batch(
        DEFECTS["noise .05"](asking.unseen.images[:50], stream(0, "noise")),
        asking.unseen.labels[:50],
        tuple(f"noisy-{i}" for i in range(50)),
    )
    good = asking.good.take(np.arange(50, 120), "good")
    apart = joined(asking.pool(defects), good)
    rest = asking.unseen.take(np.arange(50, 120))
    together = asking.pool(Batch.concatenate([defects, rest]))  # under their own keys: these choose the detector's network
    assert set(apart.found.signals) == set(together.found.signals) == set(signals.FAMILIES)
    for name, values in together.found.signals.items():
        assert apart.found.signals[name] == pytest.approx(values, rel=2e-3, abs=1e-4), name
    assert (apart.found.nearest == together.found.nearest).all()
    assert apart.found.expected == pytest.approx(together.found.expected)
    alone = np.concatenate([asking.pool(defects).found.signals["duplicate"], good.found.signals["duplicate"]])
    assert (apart.found.signals["duplicate"] != alone).any()


def test_relabelled_images_keep_every_other_signal(asking: KnownAnswers) -> None:
    wrong = asking.wrong_labels()
    changed = {name for name, x in wrong.found.signals.items() if (x != asking.good.found.signals[name]).any()}
    assert changed == {"label"}  # the reference has no labels, so support doesn't look at them
    again = asking.pool(Batch(asking.unseen.images, wrong.evidence.labels, asking.unseen.keys))
    assert again.found.signals["label"] == pytest.approx(wrong.found.signals["label"])


def test_recall_of_the_planted_counts_copies_dropped_as_copies(asking: KnownAnswers) -> None:
    planted = planted_recall(asking.real, asking.calibration, asking.config, asking.witness, 0)
    assert [(p.kind, p.name) for p in planted] == [*(("copy", n) for n in COPIES), *(("defect", n) for n in DEFECTS)]
    assert {p.n for p in planted} == {20}
    by_name = {(p.kind, p.name): p for p in planted}
    assert by_name["copy", "exact"].found == by_name["defect", "static"].found == by_name["defect", "constant"].found == 1
    for p in planted:
        assert max(p.reasons.values(), default=0) <= 1
        if p.kind == "copy":
            both = p.reasons.get("copy", 0) + p.reasons.get("feature copy", 0)
            assert max(p.reasons.get("copy", 0), p.reasons.get("feature copy", 0)) <= p.found <= both + 1e-9
    off = asking.config.model_copy(update={"planted": 0})
    assert planted_recall(asking.real, asking.calibration, off, asking.witness, 0) == ()


@pytest.mark.parametrize(
    ("verdict", "found", "notices", "seen"),
    [
        ("accept", 0.89, (), False),
        ("accept", None, (), False),
        ("accept", 0.9, (), True),
        ("accept", 0.1, ("fid is high",), True),
        ("reject", 0.0, (), True),
        ("insufficient evidence", None, (), True),
    ],
)
def test_seen_is_not_accepted_or_nearly_all_dropped_or_noticed(verdict, found, notices, seen) -> None:  # type: ignore[no-untyped-def]
    answer = Answer("x", 0.2, 100, verdict, 0.9, found, 0.05, {}, (), notices, {})
    assert answer.seen is seen
