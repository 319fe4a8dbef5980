"""Known answers: sets with a planted defect, and what the gate says of them. The gate's own test, on any data set.

Real images that nobody saw play a generator; a share of them is replaced by something that a gate must see. The signals
of an image don't depend on the set it comes in (but for duplicates), so they are taken once a pool of images, and sets are
put together from pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score

from synthgen.config.schema import GateConfig
from synthgen.data.planted import COPIES, DEFECTS, noisy
from synthgen.errors import DataError
from synthgen.gate import filters, judge, signals
from synthgen.gate.evidence import Evidence, Real
from synthgen.metrics.copies import nearest_other
from synthgen.randomness import stream
from synthgen.types import Batch, FeatureSet, GateDecision, GateReport

SHARES = (0.05, 0.2, 0.5)
"""Of a set, for the defects that are mixed with good images."""

Witness = Callable[[Batch], Evidence]


@dataclass(frozen=True)
class Answer:
    """What the gate said of one planted set.

    Attributes:
        name: of the defect.
        share: of the set that is planted; 0 where the defect is of the set, not of its samples.
        n: samples.
        verdict: on the set.
        kept: share of all that was kept.
        found: share of the planted samples that was dropped, None if there are none.
        good_dropped: share of the others that was dropped, None if there are none.
        reasons: reason -> share of the planted samples (of all, if share is 0) dropped for it.
        broken: metrics and classes that reject the set.
        notices: what the report says beside its verdict.
        auroc: family -> area under the ROC curve, planted against good; empty where either is missing.
    """

    name: str
    share: float
    n: int
    verdict: GateDecision
    kept: float
    found: float | None
    good_dropped: float | None
    reasons: dict[str, float]
    broken: tuple[str, ...]
    notices: tuple[str, ...]
    auroc: dict[str, float]

    @property
    def seen(self) -> bool:
        """Whether it was seen: the set isn't accepted, nearly all planted samples are gone, or the report notices something."""
        return self.verdict != "accept" or (self.found is not None and self.found >= 0.9) or bool(self.notices)


@dataclass(frozen=True)
class Pool:
    """Images with their evidence and signals; duplicates aside, these don't depend on the set an image is in."""

    evidence: Evidence
    found: signals.Found

    def take(self, rows: np.ndarray, tag: str) -> Pool:
        """The given rows under keys of their own."""
        e, f = self.evidence, self.found
        keys = tuple(f"{tag}-{i:06d}" for i in range(len(rows)))
        features = FeatureSet(e.features.extractor, e.features.features[rows], e.labels[rows], keys)
        margins = None if e.margins is None else e.margins[rows]
        picked = {name: values[rows] for name, values in f.signals.items()}
        return Pool(
            Evidence(e.images[rows], features, e.probabilities[rows], margins),
            signals.Found(picked, f.expected[rows], f.nearest[rows], f.distance[rows]),
        )

    def relabelled(self, labels: np.ndarray, real: Real, config: GateConfig) -> Pool:
        """The same images under other labels."""
        evidence = replace(self.evidence, features=replace(self.evidence.features, labels=labels))
        changed = {
            "support": signals.support(evidence, real.reference, config.neighbours),
            "label": signals.doubt(evidence),
        }
        return Pool(evidence, self.found._replace(signals=self.found.signals | changed))


def joined(first: Pool, second: Pool) -> Pool:
    """One pool out of two, with duplicates looked for in both together."""
    a, b = first.evidence, second.evidence
    images = np.concatenate([a.images, b.images])
    features = FeatureSet(
        a.features.extractor,
        np.concatenate([a.features.features, b.features.features]),
        np.concatenate([a.labels, b.labels]),
        a.features.keys + b.features.keys,
    )
    margins = None if a.margins is None or b.margins is None else np.concatenate([a.margins, b.margins])
    evidence = Evidence(images, features, np.concatenate([a.probabilities, b.probabilities]), margins)
    expected = np.concatenate([first.found.expected, second.found.expected])
    merged = {name: np.concatenate([first.found.signals[name], second.found.signals[name]]) for name in first.found.signals}
    merged["duplicate"] = signals.ratio(nearest_other(images).numpy(), expected)
    near, distance = (np.concatenate([getattr(pool.found, name) for pool in (first, second)]) for name in ("nearest", "distance"))
    return Pool(evidence, signals.Found(merged, expected, near, distance))


class KnownAnswers:
    """Planted sets for one data set and one set of networks.

    Args:
        real: each set in its role.
        unseen: real images with labels that neither networks nor thresholds saw.
        outliers: images of another data set in the same shape, with any labels; none if empty.
        witness: takes evidence of new images.
        config: of the gate.
        class_names: of the labels.
        num: samples a set, at most as many as `unseen` has.
        seed: of every draw.
        device: where copies are searched.
    """

    def __init__(
        self,
        real: Real,
        unseen: Batch,
        outliers: Batch,
        witness: Witness,
        config: GateConfig,
        class_names: tuple[str, ...],
        num: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.real, self.config, self.class_names, self.seed, self.device = real, config, class_names, seed, device
        self.witness, self.outliers = witness, outliers
        rows = stream(seed, "known answers").permutation(len(unseen))[:num]
        self.unseen = unseen.take(rows)
        self.good = self.pool(self.unseen)
        self.calibration = filters.calibrate(real, config, len(rows), device)

    def pool(self, batch: Batch) -> Pool:
        evidence = self.witness(batch)
        return Pool(evidence, signals.find(evidence, self.real, self.config, self.device))

    def answers(self) -> Iterator[Answer]:
        """Every set in turn: more real images, copies, defects of samples at each share, defects of the set."""
        yield self.answer("none: other real images", self.good.take(np.arange(len(self.unseen)), "good"), 0)
        for name, plant in COPIES.items():
            train = self.real.train
            rows = np.arange(len(self.unseen)) % len(train)
            images = plant(train.images[rows], stream(self.seed, f"known answers {name}"))
            yield from self.mixed(
                f"copies: {name}", self._pool_of(images, train.labels[rows]), (1.0, *self._shares(name == "flip"))
            )
        for name, plant in DEFECTS.items():
            images = plant(self.unseen.images, stream(self.seed, f"known answers {name}"))
            yield from self.mixed(name, self._pool_of(images, self.unseen.labels), (1.0, *self._shares(True)))
        if len(self.class_names) > 1:
            yield from self.mixed("wrong labels", self.wrong_labels(), (1.0, *SHARES))
        if len(self.outliers):
            rows = np.arange(len(self.unseen)) % len(self.outliers)
            strangers = self.outliers.take(rows)
            labels = self.unseen.labels[stream(self.seed, "labels of outliers").permutation(len(rows))]
            yield from self.mixed("outliers of another data set", self._pool_of(strangers.images, labels), (1.0, *SHARES))
        yield from self.duplicated()
        for name, rows in self.narrowed():
            yield self.answer(name, self.good.take(rows, "good"), 0)

    def mixed(self, name: str, planted: Pool, shares: tuple[float, ...]) -> Iterator[Answer]:
        """A set for each share: planted samples in place of as many good ones."""
        n = len(self.unseen)
        for share in shares:
            num = round(share * n)
            order = stream(self.seed, f"known answers mixture {share}").permutation(n)
            own = planted.take(order[:num], "planted")
            both = joined(own, self.good.take(order[num:], "good")) if num < n else own
            yield self.answer(name, both, num)

    def wrong_labels(self) -> Pool:
        """The good images under another class each.

        Raises:
            DataError: one class only. (`answers` leaves this set out then, and that without the class.)
        """
        labels, k = self.unseen.labels, len(self.class_names)
        if k < 2:
            raise DataError(f"known answers: one class only, {self.class_names[0]!r}; no label can be wrong")
        wrong = (labels + stream(self.seed, "wrong labels").integers(1, k, len(labels))) % k
        return self.good.relabelled(wrong, self.real, self.config)

    def duplicated(self) -> Iterator[Answer]:
        """Some images stand in for others of their class: one extra each, under a little noise."""
        n = len(self.unseen)
        for share in SHARES:
            num = round(share * n)
            order = stream(self.seed, f"known answers duplicates {share}").permutation(n)
            others, extra = order[num:], order[num : 2 * num]
            images = noisy(self.unseen.images[extra], stream(self.seed, "noise of duplicates"), 0.025)
            both = joined(self._pool_of(images, self.unseen.labels[extra]), self.good.take(others, "good"))
            yield self.answer("duplicates in the set", both, num, partners=np.arange(num, num + len(extra)))

    def narrowed(self) -> Iterator[tuple[str, np.ndarray]]:
        """Sets of good images that leave something out: name and rows; no class is dropped where there is one only."""
        labels = self.unseen.labels
        pixels = self.unseen.images.reshape(len(labels), -1).astype(np.float32)
        counts = np.bincount(labels, minlength=len(self.class_names))
        if (counts > 0).sum() > 1:
            yield "a class dropped", np.flatnonzero(labels != int(counts.argmax()))
        central, one_sided, single = [], [], []
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            x = pixels[rows] - pixels[rows].mean(axis=0)
            central.append(rows[np.argsort((x**2).sum(axis=1))[: max(1, len(rows) // 4)]])
            axis = np.linalg.svd(x, full_matrices=False)[2][0]
            one_sided.append(rows[x @ axis > 0])
            single.append(np.repeat(rows[:1], len(rows)))
        yield "collapse: one image a class", np.concatenate(single)
        yield "the quarter nearest the class mean", np.concatenate(central)
        yield "a mode dropped: half of each class along its main axis", np.concatenate(one_sided)

    def answer(self, name: str, pool: Pool, num_planted: int, partners: np.ndarray | None = None) -> Answer:
        """What the gate says of a set whose first `num_planted` samples are planted.

        Of a planted duplicate and its partner either may go: it counts as found if one of them is dropped.
        """
        report, valid = self.verdict(pool)
        n = len(pool.evidence)
        planted = np.arange(n) < num_planted
        good = ~planted
        gone = ~valid[planted]
        if partners is not None:
            gone, good[partners] = gone | ~valid[partners], False
        counted = planted if num_planted else np.ones(n, dtype=bool)
        reasons: dict[str, float] = {}
        for row in np.flatnonzero(counted & ~valid):
            for reason in report.dropped[pool.evidence.features.keys[row]]:
                reasons[reason] = reasons.get(reason, 0) + 1 / counted.sum()
        broken = [m.name for m in report.metrics if m.limit is not None and m.verdict == "reject"]
        broken += [c.name for c in report.classes if c.kept < self.config.min_kept_per_class]
        return Answer(
            name,
            num_planted / n,
            n,
            report.verdict,
            float(valid.mean()),
            float(gone.mean()) if num_planted else None,
            float(1 - valid[good].mean()) if good.any() else None,
            dict(sorted(reasons.items(), key=lambda item: -item[1])),
            tuple(broken),
            report.notices,
            self.auroc(pool, planted, good) if num_planted and good.any() else {},
        )

    def verdict(self, pool: Pool) -> tuple[GateReport, np.ndarray]:
        """The gate's report, and which samples are valid."""
        evidence, found = pool.evidence, pool.found
        valid, reasons = filters.keep(evidence, found, self.calibration)
        sifted = filters.Sifted(found.signals, found.nearest, found.distance, self.calibration, valid, valid, reasons, None)
        return judge.judge(evidence, self.real, sifted, self.config, self.class_names, self.seed), valid

    @staticmethod
    def auroc(pool: Pool, planted: np.ndarray, good: np.ndarray) -> dict[str, float]:
        """Family -> how well its signal orders planted above good samples."""
        counted = planted | good
        sign = {name: 1 if signals.FAMILIES[name].bad == "high" else -1 for name in pool.found.signals}
        found = pool.found.signals
        ordered = {name: sign[name] * np.nan_to_num(values, posinf=1e30)[counted] for name, values in found.items()}
        return {name: float(roc_auc_score(planted[counted], values)) for name, values in ordered.items()}

    def _pool_of(self, images: np.ndarray, labels: np.ndarray) -> Pool:
        return self.pool(Batch(images, labels, tuple(f"planted-{i:06d}" for i in range(len(images)))))

    @staticmethod
    def _shares(all_of_them: bool) -> tuple[float, ...]:
        return SHARES if all_of_them else (0.2,)
