"""What the gain study says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from synthgen.types.record import Record, Verdict

MAKING = ("pool", "features", "train", "candidates", "gate", "select")
"""Stages of a run that its samples cost: the labels of the pool, the gate's networks, every generator (those that weren't
chosen too) with its samples and gate, and the choice among them."""


@dataclass(frozen=True)
class Scores:
    """How well predicted class probabilities fit the labels of a set.

    Attributes:
        accuracy: share of images whose likeliest class is theirs.
        loss: mean cross-entropy in nats, probabilities clipped at 1e-7.
        macro_f1: unweighted mean of F1 over the classes that the set has.
        ece: expected calibration error, 15 bins of equal width (Guo et al. 2017).
        worst_class: lowest recall of a class that the set has.
        worst_group: lowest accuracy of a group, None where images carry no groups.
        recalls: recall of each class, None for a class that the set hasn't.
    """

    accuracy: float
    loss: float
    macro_f1: float
    ece: float
    worst_class: float
    worst_group: float | None
    recalls: tuple[float | None, ...]


@dataclass(frozen=True)
class GainRow:
    """One trained classifier (or committee) of the study.

    Attributes:
        arm: name of the arm.
        seed: of the classifier.
        num_real, num_synthetic: images it was trained on.
        steps: gradient steps of each of its networks, those before its own training included; 0 for a classical model.
        drawn: images that each of its networks drew in those steps, again and again, labelled or not.
        networks: how many networks vote.
        val: on val; None where val was trained on.
        test: on the locked test split.
        clean: accuracy on the test images without a near duplicate among the real images of any arm, or the samples that the
            gate kept, None if there are none.
        seconds: wall time of its training.
        device_seconds: seconds of a GPU within them, 0 on the CPU.
    """

    arm: str
    seed: int
    num_real: int
    num_synthetic: int
    steps: int
    networks: int
    val: Scores | None
    test: Scores
    clean: float | None
    seconds: float
    device_seconds: float
    drawn: int = 0


@dataclass(frozen=True)
class Interval:
    """A paired difference (arm - baseline) in accuracy, with its 95% interval (see `gain.stats`).

    Attributes:
        arm, baseline: names of the arms.
        difference: mean over seeds, in points of test accuracy (1 point = 0.01).
        low, high: 95% interval, Student's t over seeds and test images (groups of them, where they come in groups).
        seeds: number of pairs.
        seeds_needed: seeds at which a true difference of this size would have 80% power, None if more seeds can't help.
        boot_low, boot_high: 95% bootstrap interval (BCa over seeds and images).
        p: two-sided, of the t interval.
        p_holm: after Holm's correction over all arms compared with the same baseline.
        effect_size: mean over sd of the seeds' differences (Cohen's d_z); None where the sd is 0.
    """

    arm: str
    baseline: str
    difference: float
    low: float
    high: float
    seeds: int
    seeds_needed: int | None
    boot_low: float
    boot_high: float
    p: float
    p_holm: float
    effect_size: float | None


@dataclass(frozen=True)
class ArmAccuracy:
    """Test accuracy of an arm, mean over seeds, as a share.

    Attributes:
        arm: its name.
        accuracy: the mean.
        low, high: 95% interval, Student's t over seeds and test images (groups of them, where they come in groups).
    """

    arm: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class CurvePoint:
    """Real-only accuracy at a size.

    Attributes:
        num_real: labelled real images.
        accuracies: test accuracy of each seed, each on its own nested subset.
        source: "train", or what had to be added to it: "train and val", "hidden labels" (a simulation).
        low, high: 95% interval of the mean over seeds and test images, as of `ArmAccuracy`; None where it isn't known.
    """

    num_real: int
    accuracies: tuple[float, ...]
    source: str
    low: float | None = None
    high: float | None = None

    @property
    def estimate(self) -> tuple[float, float, float]:
        """Mean, low and high in percent; all the mean where no interval is known."""
        mean = sum(self.accuracies) / len(self.accuracies)
        return 100 * mean, 100 * (mean if self.low is None else self.low), 100 * (mean if self.high is None else self.high)


@dataclass(frozen=True)
class Exchange:
    """How many real images real-plus-synthetic training is worth.

    Attributes:
        arm: the synthetic arm.
        num_real: real images it had.
        equivalent: n' at which the real-only curve reaches its accuracy; None where refused.
        low, high: 95% interval of n', None where it leaves the measured range and extrapolation wasn't asked for.
        factor: equivalent / num_real.
        extrapolated: whether n' lies outside the measured sizes.
        note: why it was refused or how to read it, in one sentence.
    """

    arm: str
    num_real: int
    equivalent: float | None
    low: float | None
    high: float | None
    factor: float | None
    extrapolated: bool
    note: str


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy over the number of labelled real images: error(n) = offset + scale * n ** -exponent.

    Attributes:
        recipe: what was trained at each size.
        points: measured, by size.
        offset, scale, exponent: of the fit, errors as shares; None where there are too few sizes to fit.
        fit_error: root mean square residual of the mean accuracies, in points.
        next_images: how many more real images `next_gain` is about.
        next_gain: points that they would bring at the size of train by the fit, and its 95% interval.
        exchange: one for each synthetic arm studied.
        note: limits, in one sentence.
    """

    recipe: str
    points: tuple[CurvePoint, ...]
    offset: float | None
    scale: float | None
    exponent: float | None
    fit_error: float | None
    next_images: int
    next_gain: tuple[float, float, float] | None
    exchange: tuple[Exchange, ...]
    note: str


@dataclass(frozen=True)
class Control:
    """A question that a sceptic asks, and what was measured.

    Attributes:
        question: in plain words.
        answer: in one sentence, with figures.
        alarm: whether it speaks against the gain.
    """

    question: str
    answer: str
    alarm: bool


@dataclass(frozen=True)
class ClassGain:
    """What a class, or a group of images, gains or loses.

    Attributes:
        name: of the class or group.
        kind: class or group.
        num_test: test images of it.
        baseline, arm: recall of the strongest real-only arm and of the synthetic arm.
        difference, low, high: in points, paired over seeds and images.
        harmed: whether it loses, after Holm's correction over all classes and groups.
    """

    name: str
    kind: Literal["class", "group"]
    num_test: int
    baseline: float
    arm: float
    difference: float
    low: float
    high: float
    harmed: bool


@dataclass(frozen=True)
class GainReport(Record):
    """What training on real-plus-synthetic gains, arm by arm.

    Attributes:
        verdict: use, reject or insufficient evidence, by the gain alone.
        reasons: one sentence each.
        advice: what to do next, one sentence each: the arm that is best per cost, classes to collect, when to stop.
        best_real: the strongest real-only arm, chosen on val.
        best_synthetic: the strongest arm with synthetic images of as many networks, chosen on val.
        recipes: arm -> what its networks are trained on; a committee's was found on val.
        tuned: recipe -> the value of its dial that val chose.
        rows: every trained classifier.
        accuracies: of each arm, with its interval.
        intervals: each arm against the strongest real-only arm, and the comparisons that decided.
        watts: power that energy is estimated with.
        skipped: arm -> why it was not run.
        decisive: (arm, baseline) pairs whose intervals decided the verdict.
        curve: real-only accuracy over size, None if it wasn't asked for.
        controls: a sceptic's questions.
        classes: gain of each class and group.
    """

    SCHEMA: ClassVar[str] = "synthgen.gain/3"

    verdict: Verdict
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    best_real: str
    best_synthetic: str
    recipes: dict[str, str]
    tuned: dict[str, float]
    rows: tuple[GainRow, ...]
    accuracies: tuple[ArmAccuracy, ...]
    intervals: tuple[Interval, ...]
    watts: float
    skipped: dict[str, str]
    decisive: tuple[tuple[str, str], ...]
    curve: LearningCurve | None
    controls: tuple[Control, ...]
    classes: tuple[ClassGain, ...]

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        curve = given["curve"]
        return given | {
            "reasons": tuple(given["reasons"]),
            "advice": tuple(given["advice"]),
            "rows": tuple(_revive_row(row) for row in given["rows"]),
            "accuracies": tuple(ArmAccuracy(**a) for a in given["accuracies"]),
            "intervals": tuple(Interval(**i) for i in given["intervals"]),
            "decisive": tuple((arm, base) for arm, base in given["decisive"]),
            "curve": curve and _revive_curve(curve),
            "controls": tuple(Control(**c) for c in given["controls"]),
            "classes": tuple(ClassGain(**c) for c in given["classes"]),
        }


def _revive_row(row: dict[str, Any]) -> GainRow:
    val, test = ({**s, "recalls": tuple(s["recalls"])} if s else None for s in (row["val"], row["test"]))
    return GainRow(**row | {"val": val and Scores(**val), "test": Scores(**(test or {}))})


def _revive_curve(curve: dict[str, Any]) -> LearningCurve:
    points = tuple(CurvePoint(**point | {"accuracies": tuple(point["accuracies"])}) for point in curve["points"])
    exchange = tuple(Exchange(**e) for e in curve["exchange"])
    following = curve["next_gain"] and tuple(curve["next_gain"])
    return LearningCurve(**curve | {"points": points, "exchange": exchange, "next_gain": following})
