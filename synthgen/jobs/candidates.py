"""Candidates from wherever they come: our own folders, exports, archives, any tool's labelled images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from synthgen import storage
from synthgen.config.schema import RunConfig
from synthgen.data import sources
from synthgen.errors import DataError
from synthgen.gate.mix import LabelPlan
from synthgen.jobs.order import CANDIDATES
from synthgen.jobs.real import source_of
from synthgen.shards import manifest, raw, read
from synthgen.types import Batch, DatasetSpec, SampleInfo
from synthgen.types.fits import misfit

ABOUT = "candidates.json"


def load_candidates(
    path: Path, spec: DatasetSpec, config: RunConfig, note: Callable[[str], None] = lambda line: None
) -> tuple[Batch, list[SampleInfo], str]:
    """Candidates from a folder of ours (`generate`, `export`), a .tar, or anything that real images can come from.

    `note` is handed a line for every kind of change that images went through when they were read.

    Returns:
        The images with labels numbered as the real images' are, what is known of each, and a digest of the input.

    Raises:
        DataError: nothing there; another image shape; a class that the real images don't have; an image without a label.
    """
    if (path / CANDIDATES).is_file():
        storage.check_folder(path)
        batch = raw.read(path / CANDIDATES, spec)
        about = _about(path)
        made = about["provenance"]
        infos = [SampleInfo(about["generator"], made["checkpoint"], made["seed"], _index(path, key)) for key in batch.keys]
        return batch, infos, storage.folder_digest(path)
    if path.suffix == ".tar" or (path / manifest.NAME).is_file() or _holds_tars(path):
        found, names, known = read.load(path)
        infos = known or [SampleInfo(path.stem, "", 0, -1) for _ in found.keys]
        digest = storage.sha256_json([list(found.keys), sources.fingerprint(found.images, found.labels, found.keys)])
    else:
        source = source_of(path, config)
        size = {"size_px": spec.image_shape[1], "channels": spec.image_shape[0]}
        plain = {"name": None, "group_column": None, "group_pattern": None}
        loaded = sources.load(source.data.model_copy(update=size | plain), any_classes=True)
        found, names, digest = loaded.batch, loaded.spec.class_names, loaded.spec.fingerprint
        for what, count in loaded.converted.items():
            note(f"{count} of the {len(found)} candidates were changed when they were read: {what}")
        found = Batch(found.images, found.labels, tuple(key.replace("real-", "candidate-") for key in found.keys))
        infos = [SampleInfo(path.stem, "", 0, -1) for _ in found.keys]
    if found.images.shape[1:] != spec.image_shape:
        raise DataError(f"{path}: images of shape {found.images.shape[1:]}, the real ones have {spec.image_shape}; resize them")
    unknown = [name for name in names if name not in spec.class_names]
    if unknown:
        raise DataError(
            f"{path}: the class {unknown[0]!r} is not one of the real images' ({', '.join(spec.class_names)}); rename it"
        )
    number = np.array([spec.class_names.index(name) for name in names], dtype=np.int64)
    if (found.labels < 0).any():
        raise DataError(f"{path}: {int((found.labels < 0).sum())} images have no label; the gate judges labelled samples")
    return Batch(found.images, number[found.labels], found.keys), infos, digest


def candidates_digest(path: Path, spec: DatasetSpec, config: RunConfig) -> str:
    """The digest that `load_candidates` gives; of a folder of ours without reading the images."""
    if (path / CANDIDATES).is_file():
        storage.check_folder(path)
        return storage.folder_digest(path)
    return load_candidates(path, spec, config)[2]


def label_plan(path: Path, spec: DatasetSpec) -> LabelPlan | None:
    """The class mix that a folder of `generate` was asked for; None if it is that of train, or nobody said.

    Raises:
        DataError: a class that the real images don't have.
    """
    if not (path / CANDIDATES).is_file():
        return None
    plan = _about(path).get("plan")
    if plan is None or plan["labels"] == "match":
        return None
    unknown = [name for name in plan["counts"] if name not in spec.class_names]
    if unknown:
        raise DataError(f"{path}: the class {unknown[0]!r} is not one of the real images' ({', '.join(spec.class_names)})")
    return LabelPlan(plan["labels"], tuple(plan["counts"].get(name, 0) for name in spec.class_names))


class _Made(TypedDict):
    checkpoint: str
    seed: int


class _Plan(TypedDict):
    labels: str
    counts: dict[str, int]


class _About(TypedDict, total=False):
    plan: _Plan | None


class About(_About):
    """`candidates.json`, as far as it is read here."""

    generator: str
    provenance: _Made


def _about(path: Path) -> dict[str, Any]:
    """What `generate` said of its candidates.

    Raises:
        DataError: something else, or nothing.
    """
    found: dict[str, Any] = storage.read_json(path / ABOUT)
    if wrong := misfit(found, About):
        raise DataError(f"{path / ABOUT}: damaged: {wrong}; draw the candidates again")
    return found


def _index(path: Path, key: str) -> int:
    """The number of a sample under its checkpoint, with which its key ends."""
    digits = key.rpartition("-")[2]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise DataError(
            f"{path / CANDIDATES}: the key {key!r} doesn't end with the number of a sample; draw the candidates again"
        )
    return int(digits)


def _holds_tars(path: Path) -> bool:
    return path.is_dir() and any(next(path.glob(f"{folder}*.tar"), None) for folder in ("", "webdataset/"))
