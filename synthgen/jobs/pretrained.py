"""`init_from`: a checkpoint of ours or a folder of diffusers -> a trained network to start from. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from synthgen import storage
from synthgen.errors import CheckpointError
from synthgen.jobs.order import CHECKPOINT
from synthgen.jobs.real import Split, share_images
from synthgen.models.base import read_header
from synthgen.models.pretrained import Pretrained, of_diffusers
from synthgen.types import DatasetSpec

WEIGHTS = "diffusion_pytorch_model.safetensors"


def digest(path: Path) -> str:
    """What stands for the checkpoint in a stage's fingerprint.

    Raises:
        CheckpointError: no such file or folder.
    """
    path = find(path)
    if path.is_file():
        return storage.sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors"))
    return storage.sha256_json({p.relative_to(path).as_posix(): storage.sha256_file(p) for p in files})


def find(path: Path) -> Path:
    """The file of ours, or the folder of diffusers, that a path given by a user stands for."""
    if (path / CHECKPOINT).is_file():
        return path / CHECKPOINT
    if not path.is_file() and not path.is_dir():
        raise CheckpointError(f"init_from: {path}: no such file or folder; give a {CHECKPOINT} or a folder of diffusers")
    return path


def read(path: Path, kind: str, split: Split) -> Pretrained:
    """Reads a trained network.

    Raises:
        CheckpointError: neither a checkpoint of ours nor a folder of diffusers; of another kind of generator; trained on
            another split of the same data set, so that it may have seen the test images.
    """
    path = find(path)
    if path.is_dir():
        if kind != "diffusion":
            raise CheckpointError(f"init_from: {path}: a folder can only start a diffusion, and this is a {kind}")
        return _read_diffusers(path)
    data = path.read_bytes()
    about = read_header(data, str(path))
    if about["kind"] != kind:
        raise CheckpointError(f"init_from: {path}: holds a {about['kind']}, and this is a {kind}")
    spec = DatasetSpec.from_json(about["spec"], str(path))
    ancestors = (*((str(source), str(folds)) for source, folds in about["ancestors"]), (about["source"], about["trained_on"]))
    same_images = spec.fingerprint == split.spec.fingerprint and about["trained_on"] != split.digest
    if same_images or any(share_images(source, split.origin) and folds != split.digest for source, folds in ancestors if source):
        raise CheckpointError(
            f"init_from: {path}: it, or its own start, was trained on another split of the same images, and may have seen "
            "this one's test images; start from one that was trained on other data"
        )
    settings = {key: about["config"][key] for key in ("objective", "sigma_data") if key in about["config"]}
    if "objective" in about["structure"]:  # of a network of diffusers, which brings its own
        settings.pop("objective", None)
    try:
        tensors = load_tensors(data)
    except Exception as error:  # safetensors raises bare exceptions of its own
        raise CheckpointError(f"init_from: {path}: damaged ({' '.join(str(error).split())[:200]}); train it again") from error
    return Pretrained(str(path), tensors, about["structure"], spec.class_names, settings, ancestors)


def _read_diffusers(folder: Path) -> Pretrained:
    """A UNet2DModel with its scheduler: a pipeline's folder (unet/, scheduler/), or both files in one."""
    from diffusers import UNet2DModel

    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = next(
        (p for p in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json") if p.is_file()), None
    )
    if not (unet_folder / "config.json").is_file() or settings is None:
        raise CheckpointError(
            f"init_from: {folder}: no unet/config.json and scheduler/scheduler_config.json, as save_pretrained writes"
        )
    if not (unet_folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"init_from: {unet_folder}: no {WEIGHTS}; pickled weights (.bin) aren't read: save it again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    about = _read_json(unet_folder / "config.json")
    if about.get("_class_name") != "UNet2DModel":
        raise CheckpointError(
            f"init_from: {unet_folder}: holds a {about.get('_class_name')!r}, only a UNet2DModel can be taken up"
        )
    if "quantization_config" in about or (unet_folder / f"{WEIGHTS}.index.json").exists():
        raise CheckpointError(f"init_from: {unet_folder}: weights in pieces or in other types; save them as one {WEIGHTS}")
    try:
        _check_size(UNet2DModel, about, unet_folder)
        unet: Any = UNet2DModel.from_pretrained(unet_folder, local_files_only=True, use_safetensors=True)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers raises what it likes
        raise CheckpointError(f"init_from: {unet_folder}: can't be read ({' '.join(str(error).split())[:200]})") from error
    return of_diffusers(unet, _read_json(settings), str(folder))


def _check_size(model: Any, about: dict[str, Any], folder: Path) -> None:
    """A few settings may ask for a network of any size: what has more weights than the file has bytes isn't built."""
    with torch.device("meta"):
        needed = sum(parameter.numel() for parameter in model.from_config(about).parameters())
    if needed > (stored := (folder / WEIGHTS).stat().st_size):
        raise CheckpointError(f"init_from: {folder}: config.json asks for {needed:,} weights, and {WEIGHTS} has {stored:,} bytes")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"init_from: {path}: not JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"init_from: {path}: not a JSON object; save it again with save_pretrained")
    return loaded
