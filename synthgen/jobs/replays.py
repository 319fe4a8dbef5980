"""A sample's key -> the same sample once more, from its checkpoint."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from synthgen import models, sampling, storage
from synthgen.errors import CheckpointError, ConfigError, DataError
from synthgen.jobs.order import CHECKPOINT, Order
from synthgen.shapes import UInt8
from synthgen.shards import codec, manifest, read
from synthgen.shards.encode import info_from
from synthgen.types import ShardManifest


@dataclass(frozen=True)
class Replay:
    """A sample as the export holds it, and as its checkpoint makes it now."""

    key: str
    checkpoint: Path
    index: int
    label: str
    exported: UInt8[np.ndarray, "c h w"]
    made: UInt8[np.ndarray, "c h w"]

    @property
    def differing(self) -> int:
        """Bytes of the pixels that differ."""
        return int((self.exported != self.made).sum())

    @property
    def largest(self) -> int:
        """Largest difference of a pixel's byte."""
        return int(np.abs(self.exported.astype(int) - self.made).max())

    def in_words(self, whole: ShardManifest) -> str:
        """What came out of it, in one line; of a difference also where the two were made."""
        if not self.differing:
            return f"{self.key}: the same {self.exported.size} bytes, from {self.checkpoint}"
        made = whole.provenance
        then, now = made.libraries.get("torch", "?"), version("torch")
        why = (
            "the same torch: another processor, or the manifest was changed" if then == now else "another torch rounds otherwise"
        )
        return (
            f"{self.key}: {self.differing} of {self.exported.size} bytes differ, by {self.largest} of 255 at most; made on "
            f"{made.device}, torch {then}, here on {platform.machine()}, torch {now} ({why})"
        )


def replay(order: Order, key: str, export: Path, checkpoint: Path | None = None, image: Path | None = None) -> Replay:
    """Makes a sample of an export again from its checkpoint and compares the pixels, byte by byte.

    The chunk of sampling that the sample lay in is computed whole, so on the platform that made it no byte differs.

    Args:
        order: settings; only the device is read, the rest stands in the export.
        key: of the sample.
        export: folder with MANIFEST.json.
        checkpoint: generator.safetensors; looked for in the run folder around the export if not given.
        image: where to write the sample as PNG, if given.

    Raises:
        DataError: no such key, or images that another tool made.
        CheckpointError: the checkpoint isn't found, or is another one.
    """
    whole = manifest.verify(export)
    plan, provenance = whole.plan, whole.provenance
    if not plan:
        raise DataError(f"{export}: its images were made by another tool, and only its checkpoint could make them again")
    member = next((member for member in read.members(export, whole) if member.key == key), None)
    if member is None:
        raise DataError(f"{export}: no sample {key!r} in it; keys look like {_some_key(export, whole)!r}")
    info = info_from(member.about, f"{export}: {key!r}")
    path = checkpoint or _find(export, info.checkpoint)
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; `synthgen train` writes {CHECKPOINT}")
    if storage.sha256_file(path) != info.checkpoint:
        raise CheckpointError(f"{path}: another checkpoint than the one that made {key!r} (sha256 {info.checkpoint[:16]}...)")
    if order.device == "cpu" and not provenance.device.startswith("cpu"):
        raise ConfigError(f"{key!r} was made on {provenance.device}; give device=cuda on such a machine to compare bytes")
    generator = models.from_bytes(path.read_bytes(), str(path))
    generator.config = generator.config.model_copy(update=_settings(generator, plan["sampling"]))
    labels = sampling.planned(np.array(list(plan["plan"]["counts"].values())), info.seed)
    if not 0 <= info.index < len(labels) or labels[info.index] != member.label:
        raise DataError(f"{export}: sample {key!r} has another label than its label plan says: the manifest was changed")
    first = info.index - info.index % provenance.chunk
    batch = next(
        sampling.sample(
            generator,
            labels[: first + provenance.chunk],
            seed=info.seed,
            chunk=provenance.chunk,
            batch=provenance.chunk,
            prefix=key.rsplit("-", 1)[0],
            device=order.device,
            first=first,
            precision=plan["precision"],
        )
    )
    made = batch.images[info.index - first]
    if image is not None:
        storage.write_bytes(image, codec.encode(made[None], "balanced")[0])
    return Replay(key, path, info.index, whole.spec.class_names[int(member.label)], member.image, made)


def _settings(generator: models.Generator, known: dict[str, Any]) -> dict[str, Any]:
    """Sampling settings as the generator's config types them."""
    whole = type(generator.config).model_validate(generator.config.model_dump() | known)
    return {name: getattr(whole, name) for name in known}


def _find(export: Path, sha256: str) -> Path:
    """The checkpoint in the run folder that the export lies in."""
    for path in sorted(export.resolve().parent.glob(f"train/*/{CHECKPOINT}")):
        if storage.sha256_file(path) == sha256:
            return Path(os.path.relpath(path))
    raise CheckpointError(
        f"{export}: no checkpoint with sha256 {sha256[:16]}... in train/ beside it; say with --checkpoint where it lies"
    )


def _some_key(export: Path, whole: ShardManifest) -> str:
    return next(member.key for member in read.members(export, whole))
