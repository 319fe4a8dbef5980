"""Split -> checkpoint -> candidates."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from synthgen import models, sampling, storage, training
from synthgen.errors import CheckpointError, ConfigError
from synthgen.jobs.order import Order
from synthgen.jobs.real import Split
from synthgen.models.base import read_header, to_bytes
from synthgen.shards import raw
from synthgen.types import Batch, DatasetSpec, Progress, Provenance

CHECKPOINT = "generator.safetensors"
CANDIDATES = "candidates.parquet"


def train(order: Order, split: Split, model: str, out: Path) -> None:
    """Split -> out/generator.safetensors and out/train.json, trained on the train fold alone."""
    check_size(order, split, model)
    config = order.config
    own = getattr(config.generators, model)
    settings = {"model": own.model_dump(mode="json"), **order.section("augment", "seed", "precision"), "device": order.device}
    with order.stage(out, f"train {model}", settings, {"split": split.digest}) as work:
        if not work.done:
            generator = models.build(own, split.spec, config.augment, config.seed)
            done = training.fit(
                generator,
                [(split.role("train"), own.batch_size)],
                steps=own.steps,
                seed=config.seed,
                task=f"train {model}",
                progress=order.progress,
                device=order.device,
                precision=config.precision,
                folder=out,
            )
            work.write_bytes(CHECKPOINT, to_bytes(generator, trained_on=split.digest))
            about = {"losses": {"loss": done.losses}, "seconds": done.seconds, "steps": own.steps, "device": order.device}
            work.write_json("train.json", about)
    last = storage.read_json(out / "train.json")["losses"]["loss"][-1][1]
    order.progress.finish(f"train {model}", f"{own.steps} steps, last loss {last:.3f}, {storage.seconds(out):.0f} s")


def check_size(order: Order, split: Split, model: str) -> None:
    """Refuses a U-Net with more resolutions than the images have.

    Raises:
        ConfigError: the image size can't be halved that often.
    """
    levels, size_px = len(order.config.generators.diffusion.channel_mults), split.spec.image_shape[1]
    if model == "diffusion" and (size_px % 2 ** (levels - 1) or size_px >> (levels - 1) < 2):
        raise ConfigError(
            f"generators.diffusion.channel_mults: {levels} resolutions, and {size_px} px can't be halved so often; give fewer"
        )


def generate(order: Order, split: Split, trained: Path, out: Path) -> None:
    """Checkpoint -> out/candidates.parquet and out/candidates.json.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or was trained on another data set or another split.
    """
    config = order.config.generate
    path = trained / CHECKPOINT if trained.is_dir() else trained
    generator, sha256 = _load_generator(path, split)
    name, prefix = generator.kind, sha256[:8]
    own = getattr(order.config.generators, name)
    if name == "diffusion":  # how to sample is a setting of the job, not of the weights
        sampler = {key: getattr(own, key) for key in ("sampler", "sampling_steps", "guidance", "sigma_min", "sigma_max")}
        generator.config = generator.config.model_copy(update=sampler)
    settings = {**config.model_dump(mode="json", exclude={"batch"}), "sampler": generator.sampler, "device": order.device}
    inputs = {"split": split.digest, "checkpoint": sha256}
    with order.stage(out, f"generate {name}", settings, inputs) as work:
        if not work.done:
            task = f"generate {name}"
            order.progress.start(task, config.num)
            labels = sampling.label_plan(
                split.role("train").labels, split.spec.num_classes, config.num, config.labels, config.seed
            )
            batches = sampling.sample(
                generator, labels, seed=config.seed, chunk=config.chunk, batch=config.batch, prefix=prefix, device=order.device
            )
            raw.write(work.path(CANDIDATES), _watched(batches, order.progress, task), split.spec)
            provenance = Provenance(
                config=storage.sha256_json(settings),
                checkpoint=sha256,
                parents=inputs,
                code=storage.code_version(),
                seed=config.seed,
                sampler=generator.sampler,
                chunk=config.chunk,
                device=_device_name(order.device),
                libraries=_libraries(),
            )
            work.write_json("candidates.json", {"generator": name, "provenance": provenance.__dict__})
    order.progress.finish(f"generate {name}", f"{config.num} candidates, {storage.seconds(out):.1f} s")


def _load_generator(path: Path, split: Split) -> tuple[models.Generator, str]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; `synthgen train` writes {CHECKPOINT}")
    data = path.read_bytes()
    about = read_header(data, str(path))
    spec = DatasetSpec.from_json(about["spec"], str(path))
    for name in ("image_shape", "class_names", "fingerprint"):
        mine, theirs = getattr(split.spec, name), getattr(spec, name)
        if mine != theirs:
            raise CheckpointError(
                f"{path}: trained on another data set ({spec.name!r}): its {name} is {theirs!r}, here it is {mine!r}; "
                "train one on this data"
            )
    if about["trained_on"] != split.digest:
        raise CheckpointError(
            f"{path}: trained on another split of {spec.name!r}, so it may have seen this one's test images; train again"
        )
    return models.from_bytes(data, str(path)), storage.sha256_file(path)


def _watched(batches: Iterator[Batch], progress: Progress, task: str) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        progress.advance(task, len(batch))


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu {platform.machine()}"


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "numpy", "diffusers", "pytorch-lightning", "safetensors")}
