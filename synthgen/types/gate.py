"""What the gate says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from synthgen.types.record import GateDecision, Record


@dataclass(frozen=True)
class Metric:
    """A fidelity metric of the set, read against real-against-real at the same n (see `gate.judge`).

    Attributes:
        name: fid, kid, precision, recall, density, coverage, label_agreement, copy_share, ...
        value: candidates against the reference; None where the metric was refused.
        reference: real against real at the same n.
        excess: value - reference.
        low, high: 95% interval of the excess.
        z: excess over the spread of real against real.
        n: images on each side.
        limit: the bound on the excess that was applied, None where the metric is shown only.
        verdict: accept, reject or insufficient evidence by this metric alone.
        note: the limit in words, or why the metric was refused.
    """

    name: str
    value: float | None
    reference: float | None
    excess: float | None
    low: float | None
    high: float | None
    z: float | None
    n: int
    limit: float | None
    verdict: GateDecision
    note: str


@dataclass(frozen=True)
class ClassFidelity:
    """A class of the candidates by itself.

    Attributes:
        name: of the class.
        candidates, kept: how many were offered and how many passed.
        n: images on each side of the metrics; 0 where they were refused.
        metrics: name -> kept candidates against the reference images of the class; empty where refused.
        reference: name -> real against real of the class at the same n.
        note: why they were refused, or "".
    """

    name: str
    candidates: int
    kept: int
    n: int
    metrics: dict[str, float]
    reference: dict[str, float]
    note: str


@dataclass(frozen=True)
class Planted:
    """What the gate's checks find of a known defect that was planted in real images of this very data set.

    Attributes:
        kind: "copy" (of training images) or "defect" (in held-out images).
        name: which, see `data.planted`.
        n: images planted.
        found: share that was dropped; of copies, the share dropped as copies.
        reasons: reason -> share dropped for it.
    """

    kind: Literal["copy", "defect"]
    name: str
    n: int
    found: float
    reasons: dict[str, float]


@dataclass(frozen=True)
class Selection:
    """How the most useful of the valid candidates were chosen under a budget.

    Attributes:
        prefer: random, entropy, margin or herding.
        budget: how many were wanted.
        offered: valid candidates to choose from.
        random_share: share that had to be drawn at random to keep recall and coverage.
        mmd, mmd_random: squared MMD to the reference of the chosen, and of as many drawn at random.
        recall, recall_random: the same of recall.
        coverage, coverage_random: the same of coverage.
    """

    prefer: str
    budget: int
    offered: int
    random_share: float
    mmd: float
    mmd_random: float
    recall: float
    recall_random: float
    coverage: float
    coverage_random: float


@dataclass(frozen=True)
class GateReport(Record):
    """What the gate decided about a set of candidates, and why.

    Attributes:
        verdict: accept, reject or insufficient evidence.
        reasons: one sentence each, in plain words; why it isn't an accept, or what was checked.
        notices: one sentence each: reasons that drop more than they would of real images, metrics worse than chance allows.
        metrics: set-level figures with their real-against-real reference.
        classes: each class by itself.
        planted: recall of the per-sample checks on planted copies and defects.
        selection: how a budget was filled, None without one.
        thresholds: per-sample signal -> the threshold, calibrated on held-out real images.
        real_dropped: share of held-out real images that the same per-sample thresholds would drop.
        num_candidates: how many were judged.
        kept: keys that passed, in their order.
        dropped: key -> reasons: off support, low-level, defect, label, copy, feature copy, duplicate, beyond the budget.
        extractor: id of the feature extractor.
    """

    SCHEMA: ClassVar[str] = "synthgen.gate/2"

    verdict: GateDecision
    reasons: tuple[str, ...]
    notices: tuple[str, ...]
    metrics: tuple[Metric, ...]
    classes: tuple[ClassFidelity, ...]
    planted: tuple[Planted, ...]
    selection: Selection | None
    thresholds: dict[str, float]
    real_dropped: float
    num_candidates: int
    kept: tuple[str, ...]
    dropped: dict[str, tuple[str, ...]]
    extractor: str

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        return given | {
            "reasons": tuple(given["reasons"]),
            "notices": tuple(given["notices"]),
            "metrics": tuple(Metric(**m) for m in given["metrics"]),
            "classes": tuple(ClassFidelity(**c) for c in given["classes"]),
            "planted": tuple(Planted(**p) for p in given["planted"]),
            "selection": given["selection"] and Selection(**given["selection"]),
            "kept": tuple(given["kept"]),
            "dropped": {key: tuple(why) for key, why in given["dropped"].items()},
        }

    def reason_counts(self) -> dict[str, int]:
        """Reason -> number of candidates dropped for it (a candidate may have several)."""
        counts: dict[str, int] = {}
        for why in self.dropped.values():
            for reason in why:
                counts[reason] = counts.get(reason, 0) + 1
        return dict(sorted(counts.items()))
