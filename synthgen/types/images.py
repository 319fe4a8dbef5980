"""Images and their features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from synthgen.errors import DataError
from synthgen.shapes import Float, Int64, UInt8
from synthgen.types.record import Record

LARGEST_IMAGE = 2**31 - 1
"""Bytes of an image, at most: what a row of a Parquet file may hold."""


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

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or min(self.image_shape) < 1 or math.prod(self.image_shape) > LARGEST_IMAGE:
            raise DataError(
                f"images of shape {self.image_shape}: expected (channels, height, width), {LARGEST_IMAGE:,} bytes at most"
            )

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
