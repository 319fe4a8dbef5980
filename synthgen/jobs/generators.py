"""Split -> checkpoint -> candidates."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthgen import logs, models, preemption, sampling, storage, training
from synthgen.errors import CheckpointError
from synthgen.jobs import pools, pretrained
from synthgen.jobs.gates import Judging, num_candidates
from synthgen.jobs.looks import Looker, check_looks, look_steps, seen_with
from synthgen.jobs.order import CANDIDATES, CHECKPOINT, Order
from synthgen.jobs.real import Split
from synthgen.metrics import extractors
from synthgen.models.base import read_header, to_bytes
from synthgen.models.classifier import probabilities
from synthgen.models.pretrained import Start, take_up
from synthgen.shards import raw
from synthgen.types import Batch, DatasetSpec, Progress, Provenance


def train(order: Order, split: Split, networks: Path, model: str, out: Path) -> None:
    """Split -> out/generator.safetensors and out/train.json, trained on the train fold alone.

    Args:
        networks: folder of `features`, whose extractor looks at the samples; not read if `looks.times` is 0.

    What can't be trained is refused before anything is by `check_generator`, which is the caller's to ask: a finished stage
    needs no network built.
    """
    config = order.config
    own = config.generators.of(model)
    settings = {"model": own.model_dump(mode="json", exclude={"init_from"}), "device": order.device}
    settings |= order.section("augment", "seed", "precision", "looks")
    inputs = {"split": split.digest}
    if config.pool.train:
        inputs["pool"] = storage.folder_digest(pools.folder_of(split))
    if own.init_from:
        inputs["init_from"] = pretrained.digest(Path(own.init_from))
    if config.looks.times:
        inputs["features"] = storage.folder_digest(networks)
        settings["seen_with"] = seen_with(config)
        if config.features.extractor != "domain":
            inputs["extractor"] = extractors.check(config.features)
    # a signal is noted within: training saves and stops at its next step, and what is trained is written first
    with preemption.held(), order.stage(out, f"train {model}", settings, inputs) as work:
        if not work.done:
            generator, start = _start(order, split, model)
            looker = Looker(order, split, networks) if config.looks.times else None
            when = look_steps(own.steps, config.looks.times) if looker else ()
            looks = training.Looks(looker, when, config.looks.tolerance, looker.picture) if looker else None
            done = training.fit(
                generator,
                [(pools.with_pool(order, split) if config.pool.train else split.on_disk("train"), own.batch_size)],
                steps=own.steps,
                seed=config.seed,
                task=f"train {model}",
                progress=order.progress,
                device=order.device,
                precision=config.precision,
                folder=out,
                looks=looks,
                log=logs.of_training(config.tracking, split.folder.parent, out.name),
            )
            work.write_bytes(CHECKPOINT, to_bytes(generator, split.digest, split.origin))
            for step, picture in done.pictures.items():
                work.write_bytes(f"looks/step-{step:06d}.png", picture)
            about: dict[str, Any] = {
                "losses": {"loss": done.losses},
                "learning_rates": done.rates,
                "looks": [{"step": look.step, **look.values} for look in done.looks],
                "step": done.step,
                "kept": done.kept,
                "stopped": done.stopped,
                "start": asdict(start) if start else None,
                "seconds": done.seconds,
                "look_seconds": looker.seconds if looker else 0.0,
                "steps": own.steps,
                "device": order.device,
            }
            work.write_json("train.json", about)
    about = storage.read_json(out / "train.json")
    order.progress.finish(f"train {model}", f"{_in_words(about)}, {storage.seconds(out):.0f} s")


def _start(order: Order, split: Split, model: str) -> tuple[models.Generator, Start | None]:
    """A generator with fresh weights, or with those of `init_from` where they fit."""
    config = order.config
    own = config.generators.of(model)
    trained = pretrained.read(Path(own.init_from), model, split) if own.init_from else None
    structure = trained.structure if trained else None
    generator = models.build(own, split.spec, config.augment, config.seed, structure)
    return generator, take_up(generator, trained) if trained else None


def _in_words(about: dict[str, Any]) -> str:
    last = about["losses"]["loss"][-1]
    words = f"{last[0]} steps, last loss {last[1]:.3f}"
    if not about["kept"]:
        words += ", no look could be kept"
    elif about["step"] != last[0]:
        words += f", kept step {about['step']}"
    return words + (f", stopped: {about['stopped']}" if about["stopped"] else "")


def check_generator(order: Order, split: Split, model: str) -> None:
    """Refuses what can't be trained, before anything is.

    Raises:
        ConfigError: settings that make no network for these images.
        CheckpointError: an `init_from` that can't be taken up.
        DataError: too few reference images for the looks.
    """
    _start(order, split, model)
    if order.config.looks.times:
        check_looks(split)


def generate(order: Order, split: Split, trained: Path, out: Path) -> None:
    """Checkpoint -> out/candidates.parquet and out/candidates.json.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or was trained on another data set or another split.
    """
    config = order.config.generate
    path = trained / CHECKPOINT if trained.is_dir() else trained
    generator, sha256 = _load_generator(path, split)
    name, prefix = generator.kind, sha256[:8]
    own = order.config.generators.of(name)
    # how to sample is a setting of the job, not of the weights
    sampling_settings = {key: getattr(own, key) for key in generator.sampling_settings}
    generator.config = generator.config.model_copy(update=sampling_settings)
    settings = {**config.model_dump(mode="json", exclude={"batch"}), "sampler": generator.sampler, "device": order.device}
    inputs = {"split": split.digest, "checkpoint": sha256}
    networks = split.folder.parent / "features"
    if config.labels == "weak":
        inputs["features"] = storage.folder_digest(networks)
    with order.stage(out, f"generate {name}", settings, inputs) as work:
        if not work.done:
            task = f"generate {name}"
            labels = _label_plan(order, split, networks)
            order.progress.start(task, len(labels))
            batches = sampling.sample(
                generator,
                labels,
                seed=config.seed,
                chunk=config.chunk,
                batch=config.batch,
                prefix=prefix,
                device=order.device,
                precision=config.precision,
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
            counts = np.bincount(labels, minlength=split.spec.num_classes).tolist()
            plan = {"labels": config.labels, "counts": dict(zip(split.spec.class_names, counts, strict=True))}
            about = {"generator": name, "provenance": provenance.__dict__, "plan": plan}
            how = generator.config.model_dump(mode="json", include=set(sampling_settings))
            work.write_json("candidates.json", {**about, "sampling": how, "precision": config.precision})
    order.progress.finish(f"generate {name}", f"{num_candidates(order, split)} candidates, {storage.seconds(out):.1f} s")


def _label_plan(order: Order, split: Split, networks: Path) -> np.ndarray:
    """Which class each candidate gets; the errors of "weak" are those of the real-only judges on val."""
    config, labels = order.config.generate, split.on_disk("train").labels
    errors = None
    if config.labels == "weak":
        val = split.role("val")
        judges = Judging(order, split, networks).judges
        each = [probabilities(network, val.images, order.device) for network in judges]
        errors = sampling.class_errors(np.mean(each, axis=0), val.labels)
    return sampling.label_plan(
        labels, split.spec.num_classes, config.num, config.labels, config.seed, fill_to=config.fill_to, errors=errors
    )


def _load_generator(path: Path, split: Split) -> tuple[models.Generator, str]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; `synthgen train` writes {CHECKPOINT}")
    if (path.parent / storage.STAGE_MANIFEST).is_file():
        storage.check_folder(path.parent)
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
    return storage.library_versions(("torch", "numpy", "diffusers", "pytorch-lightning", "safetensors"))
