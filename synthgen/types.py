"""The records that flow through the factory: frozen, without I/O, numpy alone (importing this module imports no torch).

A record that lands on disk has a JSON form (`to_json`, `from_json`) that carries its schema and version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np

from synthgen.errors import DataError
from synthgen.shapes import Float, Int64, UInt8

UNLABELLED = -1
"""The label of an image whose class is not known, or not to be looked at."""

Verdict = Literal["use", "reject", "insufficient evidence"]
GateDecision = Literal["accept", "reject", "insufficient evidence"]


class Record:
    """JSON form of a frozen dataclass: its fields beside `"schema": "synthgen.<name>/<version>"`."""

    SCHEMA: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, its schema first."""
        return {"schema": self.SCHEMA, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "record") -> Self:
        """Reads the JSON form back; `where` names the file in an error.

        Raises:
            DataError: another schema or version, a missing or an unknown field.
        """
        found = data.get("schema")
        if found != cls.SCHEMA:
            raise DataError(f"{where}: the schema is {found!r}, expected {cls.SCHEMA!r}; was it written by another version?")
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        given = {key: value for key, value in data.items() if key != "schema"}
        if names != set(given):
            raise DataError(f"{where}: fields {sorted(names ^ set(given))} are missing or unknown in {cls.SCHEMA!r}")
        return cls(**cls._revive(given))

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        """JSON lists and dicts -> tuples and records, where a field has them."""
        return given


@dataclass(frozen=True)
class DatasetSpec(Record):
    """A data set without its pixels.

    Attributes:
        name: as the user calls it.
        image_shape: (channels, height, width); 1 channel is grey, 3 are RGB.
        class_names: label i is class_names[i].
        grouped: whether images carry a group (patient, recording) that no split may cut.
        fingerprint: sha256 over keys, labels, groups and pixels.
    """

    SCHEMA: ClassVar[str] = "synthgen.dataset/1"

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    grouped: bool
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        return given | {"image_shape": tuple(given["image_shape"]), "class_names": tuple(given["class_names"])}


@dataclass(frozen=True)
class Batch:
    """Images with labels and keys: the only form in which pixels cross a module.

    Attributes:
        images: uint8, shape (b, c, h, w).
        labels: int64, shape (b,); `UNLABELLED` (-1) where the class is unknown.
        keys: a name for life each: "real-000123" or "3fa9c1d2-00000042" (checkpoint, index).
    """

    images: UInt8[np.ndarray, "b c h w"]
    labels: Int64[np.ndarray, " b"]
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(f"a batch holds uint8 images of shape (b, c, h, w), found {self.images.dtype} {self.images.shape}")
        if not (len(self.images) == len(self.labels) == len(self.keys)):
            raise DataError(f"a batch of {len(self.images)} images has {len(self.labels)} labels and {len(self.keys)} keys")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> Batch:
        """The given rows (indices or a boolean mask), in that order."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        return Batch(self.images[rows], self.labels[rows], tuple(self.keys[int(i)] for i in rows))

    @staticmethod
    def concatenate(batches: list[Batch]) -> Batch:
        """One batch out of several (at least one)."""
        return Batch(
            np.concatenate([b.images for b in batches]),
            np.concatenate([b.labels for b in batches]),
            tuple(key for b in batches for key in b.keys),
        )


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set under one extractor; two extractors can't be compared.

    Attributes:
        extractor: id that contains the hash of the extractor's weights and its resizing.
        features: float32, shape (n, d), finite.
        labels: int64, shape (n,).
        keys: as in `Batch`.
    """

    extractor: str
    features: Float[np.ndarray, "n d"]
    labels: Int64[np.ndarray, " n"]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


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


@dataclass(frozen=True)
class GainRow:
    """One trained classifier (or committee) of the study.

    Attributes:
        arm: name of the arm.
        seed: of the classifier.
        num_real, num_synthetic: images it was trained on.
        steps: gradient steps of each of its networks.
        networks: how many networks vote.
        val_accuracy, val_loss: on val, the loss is cross-entropy in nats; None where val was trained on.
        test_accuracy, test_loss: on the locked test split.
        seconds: wall time of its training.
    """

    arm: str
    seed: int
    num_real: int
    num_synthetic: int
    steps: int
    networks: int
    val_accuracy: float | None
    val_loss: float | None
    test_accuracy: float
    test_loss: float
    seconds: float


@dataclass(frozen=True)
class Interval:
    """A paired difference (arm - baseline) in accuracy, with its 95% interval (see `gain.stats`).

    Attributes:
        arm, baseline: names of the arms.
        difference: mean over seeds, in points of test accuracy (1 point = 0.01).
        low, high: 95% interval.
        seeds: number of pairs.
        seeds_needed: seeds at which a true difference of this size would have 80% power, None if more seeds can't help.
    """

    arm: str
    baseline: str
    difference: float
    low: float
    high: float
    seeds: int
    seeds_needed: int | None


@dataclass(frozen=True)
class GainReport(Record):
    """What training on real-plus-synthetic gains, arm by arm.

    Attributes:
        verdict: use, reject or insufficient evidence, by the gain alone.
        reasons: one sentence each.
        best_real: the strongest real-only arm, chosen on val.
        rows: every trained classifier.
        intervals: each arm against the strongest real-only arm, and the comparisons that decided.
        skipped: arm -> why it was not run.
        decisive: (arm, baseline) pairs whose intervals decided the verdict.
    """

    SCHEMA: ClassVar[str] = "synthgen.gain/1"

    verdict: Verdict
    reasons: tuple[str, ...]
    best_real: str
    rows: tuple[GainRow, ...]
    intervals: tuple[Interval, ...]
    skipped: dict[str, str]
    decisive: tuple[tuple[str, str], ...]

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        return given | {
            "reasons": tuple(given["reasons"]),
            "rows": tuple(GainRow(**row) for row in given["rows"]),
            "intervals": tuple(Interval(**i) for i in given["intervals"]),
            "decisive": tuple((arm, base) for arm, base in given["decisive"]),
        }


@dataclass(frozen=True)
class Provenance:
    """Where a set of samples comes from: enough to make it again.

    Attributes:
        config: sha256 of the job's configuration.
        checkpoint: sha256 of the generator's checkpoint file, "" for images that another tool made.
        parents: sha256 of each input folder's manifest, by name.
        code: synthgen's version and the digest of its sources.
        seed: of sampling.
        sampler: name and settings, in one line.
        chunk: micro-batch of sampling; part of the recipe, since it can change the last bit.
        device: "cpu" or the device's name.
        libraries: name -> version.
    """

    config: str
    checkpoint: str
    parents: dict[str, str]
    code: str
    seed: int
    sampler: str
    chunk: int
    device: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class Shard:
    """One file of an export: path relative to the manifest, samples in it, size and sha256."""

    path: str
    format: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest(Record):
    """The contents of an export folder; it is written last, so where it is present the export is whole."""

    SCHEMA: ClassVar[str] = "synthgen.shards/1"

    spec: DatasetSpec
    shards: tuple[Shard, ...]
    num_samples: int
    class_counts: dict[str, int]
    gate_verdict: str
    provenance: Provenance

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        spec = DatasetSpec(**DatasetSpec._revive(given["spec"]))
        shards = tuple(Shard(**s) for s in given["shards"])
        return given | {"spec": spec, "shards": shards, "provenance": Provenance(**given["provenance"])}


@dataclass(frozen=True)
class SampleInfo:
    """What an export says of one synthetic sample, beside its pixels and label.

    Attributes:
        generator: name of the generator ("diffusion"), or the folder's name for images that another tool made.
        checkpoint: sha256 of the checkpoint, "" if unknown.
        seed: of sampling.
        index: of the sample under that checkpoint and seed, -1 if unknown.
        scores: the gate's per-sample signals.
    """

    generator: str
    checkpoint: str
    seed: int
    index: int
    scores: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Progress(Protocol):
    """What a job tells whoever watches: the screen, a test, nobody."""

    def start(self, task: str, total: int) -> None:
        """A task of `total` steps begins."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is a short figure such as the latest loss."""

    def finish(self, task: str, line: str) -> None:
        """The task is over; `line` says in one line what came out of it."""


@dataclass(frozen=True)
class Silent:
    """A `Progress` that nobody watches; all of them are equal."""

    def start(self, task: str, total: int) -> None:
        """Ignored."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def finish(self, task: str, line: str) -> None:
        """Ignored."""
