"""What leaves the factory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from synthgen.types.images import DatasetSpec
from synthgen.types.record import Record


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
    """One file of an export that holds samples: path relative to the manifest, samples in it, size and sha256."""

    path: str
    format: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportFile:
    """One file of an export that tells of the samples: an index, the data set card, croissant.json."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest(Record):
    """The contents of an export folder; it is written last, so where it is present the export is whole.

    Attributes:
        spec: of the real data set that the samples belong to.
        shards: the files with samples; each format holds all of them.
        files: the files beside them.
        num_samples: of a format.
        class_counts: class name -> samples.
        gate_verdict: the gate's word on the whole set.
        verdict: of the gain study, "" where there was none.
        provenance: of the set.
        plan: what `synthgen replay` needs beside the checkpoint: the label plan that was asked for and the sampling settings;
            {} for images that another tool made.
        licence: of the samples, as the user named it; "" if unknown.
        evidence: what the card says of gate and gain, as JSON types: "gate", and after a study "verdict", "reasons" and "gain".
        dropped: keys that `synthgen drop` has left out, of all exports that this one descends from.
    """

    SCHEMA: ClassVar[str] = "synthgen.shards/2"

    spec: DatasetSpec
    shards: tuple[Shard, ...]
    files: tuple[ExportFile, ...]
    num_samples: int
    class_counts: dict[str, int]
    gate_verdict: str
    verdict: str
    provenance: Provenance
    plan: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @classmethod
    def _revive(cls, given: dict[str, Any]) -> dict[str, Any]:
        return given | {
            "spec": DatasetSpec(**DatasetSpec._revive(given["spec"])),
            "shards": tuple(Shard(**s) for s in given["shards"]),
            "files": tuple(ExportFile(**f) for f in given["files"]),
            "provenance": Provenance(**given["provenance"]),
            "dropped": tuple(given["dropped"]),
        }


@dataclass(frozen=True)
class SampleInfo:
    """What an export says of one synthetic sample, beside its pixels and label.

    Attributes:
        generator: name of the generator ("diffusion"), or the folder's name for images that another tool made.
        checkpoint: sha256 of the checkpoint, "" if unknown.
        seed: of sampling.
        index: of the sample under that checkpoint and seed, -1 if unknown.
        scores: the gate's per-sample signals.
        sampler: name and settings, in one line; "" if unknown.
        licence: of the sample; "" if unknown.
        soft_label: probability of each class by the gate's judges, which learnt from real images alone; () if unknown.
        nearest: key of the nearest real image that the generator saw; "" if unknown.
        nearest_distance: to it, the gate's distance of copies; NaN if unknown.
        reasons: why the gate dropped it; () for what it kept.
    """

    generator: str
    checkpoint: str
    seed: int
    index: int
    scores: dict[str, float] = field(default_factory=dict)
    sampler: str = ""
    licence: str = ""
    soft_label: tuple[float, ...] = ()
    nearest: str = ""
    nearest_distance: float = math.nan
    reasons: tuple[str, ...] = ()
