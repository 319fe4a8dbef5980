"""Candidates that stand on disk: an export of ours, a file between stages, or another tool's WebDataset archive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from synthgen.errors import DataError
from synthgen.shards import folder as image_folder
from synthgen.shards import manifest, raw, webdataset
from synthgen.shards.encode import Member, info_from
from synthgen.shards.table import check_room
from synthgen.shards.write import FORMATS
from synthgen.types import Batch, DatasetSpec, SampleInfo, ShardManifest

BY_SPEED = ("parquet", "mds", "webdataset", "npz", "folder")


def load(path: Path) -> tuple[Batch, tuple[str, ...], list[SampleInfo] | None]:
    """Images, class names, and what is known of each sample (None where another tool made them).

    Args:
        path: the folder of an export, a `.tar` of any tool, or a `.parquet` that
            synthgen wrote between its stages.

    Raises:
        DataError: a folder without a manifest, a file that differs from its sha256, a damaged or hostile archive.
    """
    path = Path(path)
    try:
        return _load(path)
    except MemoryError:
        raise DataError(f"{path}: takes more memory than there is; give it in parts") from None


def _load(path: Path) -> tuple[Batch, tuple[str, ...], list[SampleInfo] | None]:
    if path.is_dir():
        return _export(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: neither a file nor a folder")
    if path.suffix == ".tar":
        return _foreign(path)
    if raw.is_raw(path):
        return raw.read(path), raw.read_spec(path).class_names, None
    raise DataError(f"{path}: neither the folder of an export, nor a .tar, nor a .parquet that synthgen wrote between its stages")


def members(folder: Path, whole: ShardManifest) -> Iterator[Member]:
    """The samples of an export one by one, in the order of the manifest, from the format that is read fastest.

    Raises:
        DataError: a file is damaged, or a sample isn't what the manifest says.
    """
    formats = {shard.format for shard in whole.shards}
    form = next((name for name in BY_SPEED if name in formats), None)
    shards = [shard for shard in whole.shards if shard.format == form]
    paths = (
        [folder / image_folder.FOLDER / image_folder.METADATA]
        if form == "folder" and shards
        else [folder / s.path for s in shards]
    )
    number = 0
    for path in paths:
        for member in FORMATS[str(form)].read(path, whole.spec.image_shape[0]):
            _check_fits(folder, member, whole.spec)
            number += 1
            if number > whole.num_samples:
                break
            yield member
    if number != whole.num_samples:
        raise DataError(
            f"{folder}: its files don't hold the {whole.num_samples} samples that {manifest.NAME} says; copy it again"
        )


def _export(folder: Path) -> tuple[Batch, tuple[str, ...], list[SampleInfo]]:
    whole = manifest.verify(folder)
    spec = whole.spec
    check_room(folder, whole.num_samples * math.prod(spec.image_shape))
    found = list(members(folder, whole))
    if not found:
        return Batch(np.zeros((0, *spec.image_shape), np.uint8), np.zeros(0, np.int64), ()), spec.class_names, []
    infos = [info_from(member.about, f"{folder}: sample {member.key!r}") for member in found]
    return _batch(folder, found, [int(member.label) for member in found]), spec.class_names, infos


def _foreign(path: Path) -> tuple[Batch, tuple[str, ...], None]:
    members: list[Member] = []
    for member in webdataset.read(path):
        members.append(member)
        if member.image.shape != (shape := members[0].image.shape):
            raise DataError(
                f"{path}: images of 2 shapes or more, {shape} and {member.image.shape} (c, h, w) among them; "
                "unpack it and give it as an image folder, where images are brought to one shape"
            )
        check_room(path, len(members) * member.image.nbytes)
    if not members:
        raise DataError(f"{path}: no samples in it")
    names, labels = _classes(path, members)
    return _batch(path, members, labels), names, None


def _classes(path: Path, members: Iterable[Member]) -> tuple[tuple[str, ...], list[int]]:
    """Class names and labels of an archive whose labels are numbers (named by "class_name", if it is given) or names."""
    labels = [member.label for member in members]
    if all(isinstance(label, int) for label in labels):
        numbers = [int(label) for label in labels]
        if min(numbers) < 0 or max(numbers) > 100_000:
            raise DataError(f"{path}: labels from {min(numbers)} to {max(numbers)}, expected 0 and up")
        names = {number: str(number) for number in range(max(numbers) + 1)}
        names |= {
            n: m.about["class_name"] for n, m in zip(numbers, members, strict=True) if isinstance(m.about.get("class_name"), str)
        }
        return tuple(names[number] for number in sorted(names)), numbers
    if any(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: some labels are numbers and some are names")
    ordered = sorted({str(label) for label in labels})
    return tuple(ordered), [ordered.index(str(label)) for label in labels]


def _check_fits(folder: Path, member: Member, spec: DatasetSpec) -> None:
    if member.image.shape != spec.image_shape:
        raise DataError(f"{folder}: sample {member.key!r} has the shape {member.image.shape}, expected {spec.image_shape}")
    if not isinstance(member.label, int) or not 0 <= member.label < spec.num_classes:
        raise DataError(f"{folder}: sample {member.key!r} has the label {member.label!r} of {spec.num_classes} classes")


def _batch(path: Path, members: list[Member], labels: list[int]) -> Batch:
    keys = tuple(member.key for member in members)
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{path}: the key {twice!r} stands in it twice; give each image a name of its own")
    return Batch(np.stack([member.image for member in members]), np.array(labels, np.int64), keys)
