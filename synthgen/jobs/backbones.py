"""The extractor of another run, for what starts from it (`features.init_from`, `gain.transfer`), and what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from synthgen import storage
from synthgen.checkpoints import finite
from synthgen.errors import CheckpointError, DataError
from synthgen.jobs.real import Split, share_images
from synthgen.models.classifier import ClassifierNetwork
from synthgen.types import DatasetSpec
from synthgen.types.fits import misfit

EXTRACTOR = "extractor.safetensors"
TRAINED_ON, TRAINED_ON_SCHEMA = "trained_on.json", "synthgen.trained_on/1"
"""File of a features/ folder that says whose images its networks, and what those began with, were trained on."""
LAYERS = {"stages.0.weight": 4, "to_features.weight": 2, "head.weight": 2}
"""Its tensors that tell its width, its features and its classes, and their dimensions."""

Origins = tuple[tuple[str, str], ...]
"""Of each set of images that was trained on: `Split.origin` and `Split.digest`."""


def digest(folder: Path, key: str) -> str:
    """Of the weights, for a stage's fingerprint.

    Args:
        folder: features/ of another run.
        key: setting that names it, for messages.

    Raises:
        CheckpointError: no such file.
    """
    return storage.sha256_file(_weights(folder, key))


def _weights(folder: Path, key: str) -> Path:
    if not (folder / EXTRACTOR).is_file():
        found = "holds no" if folder.is_dir() else "no such folder; it should hold"
        raise CheckpointError(f"{key}={folder}: {found} {EXTRACTOR}; give the features/ folder of another run")
    return folder / EXTRACTOR


def read(folder: Path, key: str, split: Split) -> ClassifierNetwork:
    """The extractor of another run, with the class layer that it had there.

    Args:
        folder: features/ of another run.
        key: setting that names it, for messages.
        split: of this run.

    Raises:
        CheckpointError: no such file, damaged, something else, for images of other channels; trained on another split of
            these images, so that it may have seen the test images, or on nobody knows what.
        StorageError: a file of the folder was changed since.
    """
    network = _network(folder, key, split.spec)
    for origin, folds in trained_on(folder, key):
        if folds != split.digest and share_images(origin, split.origin):
            raise CheckpointError(
                f"{key}={folder}: it, or its own start, was trained on another split of the same images, so it may have seen "
                "this one's test images; start from another data set, or from other classes (data.classes)"
            )
    return network


def trained_on(folder: Path, key: str) -> Origins:
    """What the networks of a features/ folder were trained on, and those that they began with.

    A folder of an older version doesn't say, and then the split beside it does.

    Raises:
        CheckpointError: neither says.
    """
    path = folder / TRAINED_ON
    if (folder / storage.STAGE_MANIFEST).is_file():
        storage.check_folder(folder)
    if path.is_file():
        try:
            found = storage.read_sealed(path)
        except DataError as error:
            raise CheckpointError(f"{key}={folder}: {error}; give the features/ folder of a finished run") from None
        images: Any = found.get("images") if isinstance(found, dict) and found.get("schema") == TRAINED_ON_SCHEMA else None
        if wrong := misfit(images, tuple[tuple[str, str], ...], "images"):
            raise CheckpointError(f"{key}={folder}: {TRAINED_ON}: {wrong}; give the features/ folder of a finished run")
        return tuple((origin, folds) for origin, folds in images)
    if (folder.parent / "split").is_dir():
        theirs = Split.open(folder.parent)
        return ((theirs.origin, theirs.digest),)
    raise CheckpointError(
        f"{key}={folder}: nothing says what it was trained on (no {TRAINED_ON} in it, no split/ beside it), so it may have seen "
        "the test images; give the features/ folder of a run where the run made it, or a whole copy of it"
    )


def write_trained_on(path: Path, split: Split, before: Origins) -> None:
    """Says what networks are trained on: the split, and what those that they begin with were."""
    images = [[split.origin, split.digest], *map(list, before)]
    storage.write_sealed(path, {"schema": TRAINED_ON_SCHEMA, "images": images})


def _network(folder: Path, key: str, spec: DatasetSpec) -> ClassifierNetwork:
    path = _weights(folder, key)
    try:
        found = load_tensors(path.read_bytes())
    except Exception as error:  # safetensors raises bare exceptions of its own
        raise CheckpointError(_damaged(folder, key, error)) from error
    sizes = {name: tuple(found[name].shape) if name in found else () for name in LAYERS}
    if [len(size) for size in sizes.values()] != [*LAYERS.values()]:
        names = ", ".join(sorted(found)[:3]) or "none"
        raise CheckpointError(_damaged(folder, key, f"its tensors aren't an extractor's: {names}"))
    (width, channels, *_), (dim, _), (classes, _) = sizes.values()
    if channels != spec.image_shape[0]:
        raise CheckpointError(
            f"{key}={folder}: trained on images of {channels} channels, here they have {spec.image_shape[0]}; "
            "give data.channels in one of both runs"
        )
    theirs = DatasetSpec("pre-training", spec.image_shape, tuple(f"class {i}" for i in range(classes)), False, "")
    try:
        with torch.device("meta"):  # sizes alone: what the file has no weights for takes no memory
            network = ClassifierNetwork(width, dim, 0.0, theirs)
        network.load_state_dict(found, assign=True)
    except RuntimeError as error:  # names, shapes, whole numbers
        raise CheckpointError(_damaged(folder, key, error)) from error
    if not finite(network.state_dict()):
        raise CheckpointError(_damaged(folder, key, "a weight isn't a finite number"))
    return network.float()


def _damaged(folder: Path, key: str, why: object) -> str:
    return (
        f"{key}={folder}: {EXTRACTOR} can't be read ({' '.join(str(why).split())[:200]}); "
        "give the features/ folder of a finished run"
    )
