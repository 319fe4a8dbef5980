"""The class mix in which candidates are compared: what was planned, and how the real images are drawn or weighed to match.

A plan that fills up classes asks for another mix than the reference's. Read against the reference as it is, more real
images in that mix are rejected for their mix; so both sides are brought to the planned one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthgen.config.schema import GateConfig
from synthgen.gate.evidence import Evidence, Real
from synthgen.gate.least import LEAST
from synthgen.gate.selection import quotas
from synthgen.gate.signals import is_bad
from synthgen.shapes import Float, Int64
from synthgen.types import UNLABELLED

SLACK = 0.05
"""Share of what is compared that may stand in for classes of which the reference has too few: without it a class of 1% of
the plan that the reference lacks would leave nothing to compare. Both sides are drawn alike, so it favours neither."""


STRANGERS = 0.1
"""Share of images of other classes among the reference images drawn from which the report mentions them."""


@dataclass(frozen=True)
class LabelPlan:
    """Which classes candidates were asked for, in another mix than that of the real images.

    Attributes:
        labels: how it was planned (`generate.labels`).
        counts: candidates asked for, of each class.
    """

    labels: str
    counts: tuple[int, ...]

    @property
    def share(self) -> Float[np.ndarray, " k"]:
        return np.array(self.counts) / sum(self.counts)


@dataclass(frozen=True)
class Mix:
    """What a plan means for the real images.

    Attributes:
        plan: what was asked for.
        weights: share of each class among the real images to compare with; they add up to 1.
        by_label: whether an image's class is its label; else it is what the judges take it for, on both sides.
    """

    plan: LabelPlan
    weights: Float[np.ndarray, " k"]
    by_label: bool

    def classes(self, evidence: Evidence) -> Int64[np.ndarray, " n"]:
        """The class of each image by which sets are brought to one mix."""
        return evidence.labels if self.by_label else evidence.probabilities.argmax(axis=1)

    def offered(self, evidence: Evidence) -> int:
        """How many of the images are of the planned classes."""
        return int((self.weights > 0)[self.classes(evidence)].sum())

    def of(self, *sets: Evidence) -> Float[np.ndarray, " n"]:
        """A weight for each image of the sets together, at which they have the planned mix; an absent class weighs nothing."""
        classes = np.concatenate([self.classes(evidence) for evidence in sets])
        return weigh(classes, self.weights)


def planned_mix(plan: LabelPlan, real: Real) -> Mix:
    """The planned class mix, in the classes that the reference is known in.

    A labelled reference takes the plan's shares. Without labels, of the images that the judges take for class c

        share(c) ~ share of the reference taken for c * planned share of c / share of c in train,

    which is the planned share where judges are right, and keeps what they prefer wrongly where they aren't: the
    candidates are read by the same judges. (The reference is drawn as train is, so train says what mix it has.)
    """
    planned = plan.share
    if real.reference.labelled:
        return Mix(plan, planned, by_label=True)
    k = len(planned)
    taken = np.bincount(real.reference.probabilities.argmax(axis=1), minlength=k)
    train = np.bincount(real.train.labels, minlength=k)
    weights = planned * taken / np.maximum(train, 1)
    return Mix(plan, weights / weights.sum() if weights.any() else planned, by_label=False)


def side_counts(weights: Float[np.ndarray, " k"], available: Int64[np.ndarray, " k"], most: int) -> Int64[np.ndarray, " k"]:
    """How many images of each class a side has: as many as can be had in this mix, `most` in all.

    Classes of which too few are available give what they have, as long as no more than `SLACK` of the mix is missing. Where
    that leaves fewer images than every metric needs, more is let go, until there are as many.

    >>> side_counts(np.array([0.0, 0.5, 0.5]), np.array([90, 60, 200]), 500).tolist()
    [0, 60, 66]
    >>> side_counts(np.array([0.0, 0.5, 0.5]), np.array([90, 10, 200]), 500).tolist()
    [0, 10, 90]
    """
    enough = max(LEAST.values())

    def counts(t: int) -> Int64[np.ndarray, " k"]:
        return np.minimum(quotas(weights, t), available)

    def fits(t: int) -> bool:
        missing = np.maximum(t * weights - available, 0).sum()
        return bool(missing <= SLACK * t or counts(t).sum() <= enough)

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return counts(low)


def weigh(classes: Int64[np.ndarray, " n"], weights: Float[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """A weight for each row, at which the rows of each class have the given share together."""
    have = np.bincount(classes, minlength=len(weights))
    return (weights / np.maximum(have, 1))[classes]


def effective(weights: Float[np.ndarray, " n"]) -> float:
    """How many equally weighted draws tell as much as these (Kish 1965)."""
    return float(weights.sum() ** 2 / np.square(weights).sum()) if weights.any() else 0.0


def crowding(plan: LabelPlan | None, train: Int64[np.ndarray, " n"]) -> float:
    """How many times more candidates of its own class a candidate has beside it than in a set with the mix of train.

    sum over classes of planned share^2 / share in train: 1 for the same mix, k if all are of one of k equal classes.

    >>> crowding(LabelPlan("fill", (0, 7)), np.array([0, 0, 1, 1]))
    2.0
    """
    if plan is None:
        return 1.0
    have = np.bincount(train, minlength=len(plan.counts))
    return float((np.square(plan.share) / (np.maximum(have, 1) / len(train))).sum())


def least_kept(planned: int | None, config: GateConfig) -> int:
    """Fewest kept candidates of a class: `gate.min_kept_per_class`, or half of what was planned if that is fewer.

    A single one may be missing: of real images one in twenty is dropped, and a class that lacks one image is all but full.
    """
    return config.min_kept_per_class if planned is None else min(config.min_kept_per_class, planned // 2)


def labels_of(*sets: Evidence) -> Int64[np.ndarray, " n"]:
    """The labels that are known, of all sets together."""
    labels = np.concatenate([evidence.labels for evidence in sets])
    return labels[labels != UNLABELLED]


def expected_dropped(mix: Mix, real: Real, family: str, null: Float[np.ndarray, " n"], threshold: float) -> float:
    """Share of real images in the planned mix that a family drops; 0 of duplicates, whose null is in no order of images."""
    if family == "duplicate":
        return 0.0
    if family == "label":
        labels = labels_of(real.val, real.reference)
        weights = weigh(labels if len(labels) == len(null) else labels_of(real.val, real.reference, real.train), mix.plan.share)
    else:
        weights = mix.of(real.reference, real.val)
    bad = is_bad(family, null, threshold)
    return float((weights * bad).sum() / weights.sum()) if weights.any() else 0.0


def strangers(mix: Mix, real: Real) -> float:
    """Share of what is drawn from the reference that is of unplanned classes, by the judges' mistakes on val and train."""
    if mix.by_label:
        return 0.0
    weights = mix.of(real.val, real.train)
    unplanned = np.isin(np.concatenate([real.val.labels, real.train.labels]), np.flatnonzero(mix.plan.counts), invert=True)
    return float((weights * unplanned).sum() / weights.sum()) if weights.any() else 0.0


def in_words(mix: Mix, names: Sequence[str], drawn: Int64[np.ndarray, " k"], real: Real) -> list[str]:
    """Sentences for the report: what was planned, how it was compared, and what the reference has too few of."""
    plan, n, held = mix.plan, int(drawn.sum()), len(real.reference)
    wanted = [name for name, count in zip(names, plan.counts, strict=True) if count]
    which = f"{len(wanted)} of {len(names)} classes" if len(wanted) < len(names) else f"all {len(names)} classes"
    by = "" if mix.by_label else ", by what the judges take them for, as the reference has no labels"
    told = [
        f"labels={plan.labels} asked for {which}; sets are compared in the planned class mix{by}: twice {n} of {held} "
        "reference images"
    ]
    for name, planned, count in zip(names, mix.weights, drawn, strict=True):
        if n and count < planned * n - 1:
            told.append(
                f"class {name!r} is {count / n:.0%} of what is compared, in the planned mix it would be {planned:.0%}: "
                "the reference has no more of it"
            )
    others = strangers(mix, real)
    if others >= STRANGERS:
        told.append(
            f"the judges mistake classes: about {others:.0%} of the reference images compared with are of classes that weren't "
            "asked for, which may count against the candidates; a labelled reference (split.reference_labelled=true) has none"
        )
    return told
