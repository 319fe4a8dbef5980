"""What leaves the factory."""

from __future__ import annotations

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
