"""The test split, opened once: rows, paired intervals, the exchange rate, a sceptic's questions and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from synthgen.errors import DataError
from synthgen.gain import verdict
from synthgen.gain.arms import SINGLE, TEACHER, arm_of, base_of, recipe_of
from synthgen.gain.cells import Cell, Setting
from synthgen.gain.curve import class_needs, learning_curve
from synthgen.gain.scores import scores
from synthgen.gain.stats import accuracy_interval, class_gains, cluster_ids, corrected, num_clusters, paired_interval
from synthgen.gain.study import Study, mean_vote, plain, size_of, vote
from synthgen.types import UNLABELLED, ArmAccuracy, Batch, CurvePoint, GainReport, GainRow, Interval, LearningCurve

Predictions = Mapping[Cell, np.ndarray]
"""Finished cell -> its networks' class probabilities on the test images, shape (s, n, k)."""


@dataclass(frozen=True)
class TestSet:
    """The locked images.

    Attributes:
        images: labelled.
        groups: of each image, None for one without; None where images carry no groups.
        near: keys of those that have a near duplicate among the real images that arms may train on.
        given_away: keys of those that have one among the synthetic images that the gate kept: their generator may have seen them.
        opened_before: what had happened since each earlier time that they were opened, one line each.
        trained_since: networks that were trained after the test images had been opened for the first time.
        blocks: number of each image's block, its group and near duplicates together (see `splits.leakage_blocks`); where
            nobody knows them, None, groups alone are taken for what isn't independent.
    """

    images: Batch
    groups: Sequence[str | None] | None = None
    near: frozenset[str] = field(default_factory=frozenset)
    opened_before: tuple[str, ...] = ()
    trained_since: int = 0
    blocks: np.ndarray | None = None
    given_away: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """Number of each image's cluster, as `stats.paired_interval` takes them; None where all images are independent."""
        if self.blocks is not None:
            return self.blocks
        return None if self.groups is None else cluster_ids(self.groups)

    @cached_property
    def doubled(self) -> np.ndarray:
        """Which images have one, of either kind, as a mask."""
        return np.array([key in self.near or key in self.given_away for key in self.images.keys])


def assess(study: Study, on_test: Predictions, test: TestSet, setting: Setting) -> GainReport:
    """Everything that the report says.

    Raises:
        DataError: a test image without a label.
    """
    labels = test.images.labels
    if (labels == UNLABELLED).any():
        raise DataError("the test split has images without a label")
    rows, correct = [], {}
    for arm in study.votes:
        votes = [mean_vote(study.votes[arm][seed], on_test.__getitem__) for seed in range(setting.gain.seeds)]
        correct[arm] = np.array([each.argmax(1) == labels for each in votes], dtype=np.float64)
        rows += [_row(arm, seed, each, study, test, setting) for seed, each in enumerate(votes)]
    decisive = decisive_pairs(study)
    pairs = [(arm, study.best_real) for arm in study.votes if arm != study.best_real]
    pairs += [pair for pair in decisive if pair not in pairs]
    intervals = corrected([paired_interval(arm, base, correct[arm], correct[base], test.clusters) for arm, base in pairs])
    deciding = [next(i for i in intervals if (i.arm, i.baseline) == pair) for pair in decisive]
    curve, needs = _learning_curve(study, on_test, test, correct, setting)
    arm, base = decisive[0]
    masks = {name: labels == label for label, name in enumerate(setting.data.spec.class_names)}
    groups = [] if test.groups is None else list(test.groups)
    of_groups = {name: np.array([group == name for group in groups]) for name in sorted({g for g in groups if g is not None})}
    classes = class_gains(masks, of_groups, correct[arm], correct[base], test.clusters)
    independent = num_clusters(test.clusters, len(labels)) if of_groups else None
    decision, reasons = verdict.decide(deciding, setting.gain.smallest_gain, len(labels), independent)
    found = Found(study, rows, {(i.arm, i.baseline): i for i in intervals}, correct, curve, needs, test, setting)
    decision, reasons = verdict.without(decision, reasons, found, decisive)
    reasons += verdict.losers(classes, decision)
    return GainReport(
        verdict=decision,
        reasons=reasons,
        advice=verdict.advice(found),
        best_real=study.best_real,
        best_synthetic=study.best_synthetic,
        recipes=dict(study.recipes),
        tuned=dict(study.tuned),
        rows=tuple(rows),
        accuracies=tuple(ArmAccuracy(arm, *accuracy_interval(right, test.clusters)) for arm, right in correct.items()),
        intervals=intervals,
        watts=setting.watts,
        skipped=dict(study.skipped),
        decisive=tuple(decisive),
        curve=curve,
        controls=verdict.controls(found, decisive),
        classes=classes,
    )


@dataclass(frozen=True)
class Found:
    """What the advice and the sceptic's answers are drawn from.

    Attributes:
        intervals: by (arm, baseline).
        correct: arm -> 1 where seed s is right on test image n, shape (s, n).
        needs: points that each class would gain from the next real images, None without a curve.
    """

    study: Study
    rows: list[GainRow]
    intervals: dict[tuple[str, str], Interval]
    correct: dict[str, np.ndarray]
    curve: LearningCurve | None
    needs: tuple[tuple[float, float, float] | None, ...] | None
    test: TestSet
    setting: Setting

    def interval(self, arm: str, baseline: str) -> Interval | None:
        """The difference of two arms, if both were run."""
        if (arm, baseline) in self.intervals:
            return self.intervals[arm, baseline]
        if arm not in self.correct or baseline not in self.correct or arm == baseline:
            return None
        return paired_interval(arm, baseline, self.correct[arm], self.correct[baseline], self.test.clusters)

    def interval_on(self, images: np.ndarray, arm: str, baseline: str) -> Interval | None:
        """The same on some test images, a mask; None where they are fewer than 2 independent ones."""
        clusters = None if self.test.clusters is None else self.test.clusters[images]
        if num_clusters(clusters, int(images.sum())) < 2:
            return None
        return paired_interval(arm, baseline, self.correct[arm][:, images], self.correct[baseline][:, images], clusters)

    def accuracy(self, arm: str) -> float:
        """Mean over seeds, in percent."""
        return 100 * float(self.correct[arm].mean())

    def seconds(self, arm: str) -> float:
        """Training of an arm's networks, mean over seeds."""
        return float(np.mean([row.seconds for row in self.rows if row.arm == arm]))


def decisive_pairs(study: Study) -> list[tuple[str, str]]:
    """Like with like: the strongest synthetic arm on val against each real-only arm that may be the strongest, a committee
    against a committee; and the same on all labelled images. The first pair is that of the strongest."""
    pairs = []
    for real in study.contenders:
        voted = arm_of(real).role == "committee" and "synthetic_committee" in study.votes
        pairs.append(("synthetic_committee" if voted else study.single_synthetic, real))
    if "real_trainval" in study.votes and "synthetic_trainval" in study.votes:
        pairs.append(("synthetic_trainval", "real_trainval"))
    if "classical_trainval" in study.votes and "synthetic_trainval" in study.votes:
        pairs.append(("synthetic_trainval", "classical_trainval"))
    return pairs


def _row(arm: str, seed: int, predicted: np.ndarray, study: Study, test: TestSet, setting: Setting) -> GainRow:
    voters = study.votes[arm][seed]
    trained = [study.trained[cell] for cell, _ in voters]
    on_val = None
    if "trainval" not in arm_of(arm).role:
        on_val = scores(vote(study, arm, seed).astype(np.float64), setting.data.val.labels)
    clean = ~test.doubled
    right = predicted.argmax(1) == test.images.labels
    share = [study.network_s(cell) for cell, _ in voters]
    busy = sum(done.device_seconds / len(cell.networks) for done, (cell, _) in zip(trained, voters, strict=True))
    teachers = _teaching(study, study.recipes[arm], seed, arm_of(arm).role == "active")
    if recipe_of(study.recipes[arm]).unlabelled == "pool" and not arm_of(arm).synthetic:
        teachers += setting.data.pool_s
    recipe = study.recipes[arm]
    tuned = dict.fromkeys((recipe.removesuffix("@all"), base_of(recipe)))  # a partner keeps what was tuned of its base
    tuning = sum(study.tuning_s.get(each, 0.0) for each in tuned) / setting.gain.seeds
    return GainRow(
        arm=arm,
        seed=seed,
        num_real=trained[0].num_real,
        num_synthetic=trained[0].num_synthetic,
        steps=trained[0].steps,
        networks=len(voters),
        val=on_val,
        test=scores(predicted.astype(np.float64), test.images.labels, test.groups),
        clean=float(right[clean].mean()) if clean.any() else None,
        seconds=round(sum(share) + tuning + teachers, 3),
        device_seconds=round(busy + tuning + teachers if busy else 0.0, 3),  # those trained on the same device
        drawn=trained[0].drawn,
    )


def _teaching(study: Study, recipe: str, seed: int, active: bool) -> float:
    """Seconds of the networks that taught a seed: the committee for soft labels, else its first network."""
    own = recipe_of(recipe)
    if not own.taught and not active:
        return 0.0
    teacher = f"{TEACHER}@all" if recipe.endswith("@all") else TEACHER
    return sum(
        study.network_s(cell)
        for cell in study.cells_of(teacher)
        for network in cell.networks
        if network.seed == seed and (own.soft or network.member == 0)
    )


def _learning_curve(
    study: Study, on_test: Predictions, test: TestSet, correct: dict[str, np.ndarray], setting: Setting
) -> tuple[LearningCurve | None, tuple[tuple[float, float, float] | None, ...] | None]:
    """The curve with its exchange rates, and what each class would gain from the next real images."""
    if not study.curve:
        return None, None
    labels, classes = test.images.labels, setting.data.spec.num_classes
    right = [
        np.array([mean_vote(each, on_test.__getitem__).argmax(1) == labels for each in votes], dtype=np.float64)
        for _, _, votes in study.curve
    ]
    points = [
        CurvePoint(size, tuple(float(a) for a in found.mean(1)), source, *accuracy_interval(found, test.clusters)[1:])
        for (size, source, _), found in zip(study.curve, right, strict=True)
    ]
    singles = [arm for arm in study.votes if arm_of(arm).synthetic and arm_of(arm).role in SINGLE]
    width = setting.classifier.width
    size = size_of(recipe_of(study.curve_recipe), width)
    singles = [arm for arm in singles if plain(own := recipe_of(study.recipes[arm])) and size_of(own, width) == size]
    num_train, following = len(setting.data.train), setting.gain.next_images
    arms = {arm: correct[arm].mean(1) for arm in singles}
    curve = learning_curve(
        study.curve_recipe,
        points,
        num_train,
        arms,
        following,
        setting.gain.extrapolate,
        right,
        {arm: correct[arm] for arm in singles},
        test.clusters,
    )
    failed = sorted({int(cell.extra.split()[1]) for cell in study.failed if cell.extra.startswith("size")})
    if failed:
        note = f"training failed at {' and '.join(map(str, failed))} images"
        curve = replace(curve, note="; ".join(filter(None, (curve.note, note))))
    if len(points) < 2:
        return curve, None
    measured = [size for size, _, _ in study.curve]
    return curve, class_needs(measured, right, labels, classes, num_train, following, test.clusters)
