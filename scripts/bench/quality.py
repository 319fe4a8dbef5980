"""Generators at equal training time: fidelity beside real-against-real, copies, and a grid of samples to look at.

    .venv/bin/python scripts/bench/quality.py --data digits --train 50 500 --seconds 20 --seeds 0 1 2 --out outputs/quality
    .venv/bin/python scripts/bench/quality.py --data cifar10 --train 5000 --seconds 300            (minutes a generator)
    .venv/bin/python scripts/bench/quality.py --data cifar10 --train 50000 --seconds 600 --recipe-size base --cas device=cuda
    .venv/bin/python scripts/bench/quality.py --quick                                               (a check, no result)

Every generator gets the same seconds of one thread (or of the GPU); how many steps that is, is measured first. Samples, and
as many other real images, are compared with the same half of the reference in the features of a classifier of the train fold.
--cas trains a classifier on as many synthetic images as there are real ones and tests it on real ones: the classification
accuracy score (Ravuri and Vinyals 2019), beside the same classifier trained on the real images.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor  # beside this script
from PIL import Image

from synthgen import jobs, models, sampling, training
from synthgen.config.load import load
from synthgen.jobs.looks import Looker
from synthgen.models.classifier import Classifier, probabilities
from synthgen.types import Batch, Silent

CONTENDERS: dict[str, tuple[str, list[str]]] = {
    "VAE": ("vae", []),
    "VQ-VAE": ("vqvae", []),
    "GAN": ("gan", []),
    "diffusion": ("diffusion", []),
    "flow": ("diffusion", ["generators.diffusion.objective=flow"]),
}
DATA = {
    "digits": ("digits", ["split.val=50", "split.reference=800", "split.reference_labelled=false", "split.test=0.1"]),
    "cifar10": ("cifar10-2k", ["split.val=1000", "split.reference=4000", "features.steps=900", "features.width=16"]),
}
FIGURES = ("fid", "precision", "recall", "density", "coverage", "copy_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA), default="digits")
    parser.add_argument("--train", type=int, nargs="+", default=[50], help="labelled images that generators learn from")
    parser.add_argument("--seconds", type=float, default=20, help="of training, for each generator")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--recipe-size", choices=["tiny", "small", "base"], default="small")
    parser.add_argument("--cas", action="store_true", help="also train a classifier on the samples alone")
    parser.add_argument("--out", type=Path, help="folder for grids of samples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two seconds a generator, 50 digits: a check, no result")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    if asked.quick:
        asked.data, asked.train, asked.seconds, asked.seeds = "digits", [50], 2.0, [0]
    torch.set_num_threads(1)
    machine = {
        "machine": f"{processor()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "synthgen")},
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    rows: list[dict[str, Any]] = []
    for num in asked.train:
        for seed in asked.seeds:
            with tempfile.TemporaryDirectory() as scratch:
                rows += one(asked, num, seed, Path(scratch))
            if asked.json:
                asked.json.write_text(json.dumps({**machine, "seconds": asked.seconds, "rows": rows}, indent=2) + "\n")
        show([row for row in rows if row["train"] == num], num, asked)


def one(asked: argparse.Namespace, num: int, seed: int, scratch: Path) -> list[dict[str, Any]]:
    """All contenders on one split."""
    recipe, settings = DATA[asked.data]
    common = [*settings, f"size={asked.recipe_size}", f"split.train={num}", f"split.seed={seed}", f"seed={seed}"]
    if asked.quick:
        common += ["features.steps=40", "features.defect_steps=0"]
    common += [*asked.settings, *(["data.path=cifar10"] if asked.data == "cifar10" else [])]
    order = jobs.Order(load(recipe, common))
    jobs.audit(order, scratch)
    split = jobs.Split.open(scratch)
    jobs.features(order, split, scratch / "features")
    looker = Looker(order, split, scratch / "features")
    reference = split.role("reference")
    half = len(reference) // 2
    looker.reference = looker.reference[:half]
    real = looker.measure(reference.take(np.arange(half, 2 * half)))
    rows = [{"generator": "other real images", "train": num, "seed": seed, **real}]
    labels = sampling.label_plan(split.role("train").labels, split.spec.num_classes, half, "match", seed)
    score = _cas(order, split, split.role("train")) if asked.cas else None
    rows[0] |= {"accuracy": score} if score is not None else {}
    for name in asked.only:
        model, own = CONTENDERS[name]
        config = load(recipe, [*common, *own])
        generator, steps, seconds = trained(config, split, model, asked.seconds, order.device)
        began = time.process_time()
        drawn = draw(generator, labels, config, order.device)
        sampled = (time.process_time() - began) / len(labels)
        row = {"generator": name, "train": num, "seed": seed, **looker.measure(drawn)}
        row |= {"steps": steps, "seconds": round(seconds, 1), "ms_a_sample": round(1000 * sampled, 2)}
        if asked.cas:
            many = sampling.label_plan(split.role("train").labels, split.spec.num_classes, num, "match", seed + 1)
            row["accuracy"] = _cas(order, split, draw(generator, many, config, order.device))
        rows.append(row)
        print(json.dumps(row), flush=True)
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grid(drawn)).save(asked.out / f"{asked.data}-{num}-{name}-{seed}.png")
    return rows


def trained(config: Any, split: Any, model: str, seconds: float, device: str) -> tuple[models.Generator, int, float]:
    """A generator trained for so many seconds: as many steps as fit, the schedule ending with the last of them."""
    own = config.generators.of(model)

    def fit(steps: int) -> tuple[models.Generator, float]:
        generator = models.build(own.model_copy(update={"steps": steps}), split.spec, config.augment, config.seed)
        began = time.process_time() if device == "cpu" else time.perf_counter()
        settings = {"steps": steps, "seed": config.seed, "task": model, "progress": Silent(), "device": device}
        training.fit(generator, [(split.role("train"), own.batch_size)], precision=config.precision, **settings)
        return generator, (time.process_time() if device == "cpu" else time.perf_counter()) - began

    few = max(5, round(min(40, own.steps / 10)))
    fit(2)  # what is set up once
    _, short = fit(few)
    _, long = fit(3 * few)
    each = max(1e-4, (long - short) / (2 * few))
    steps = max(few, round(seconds / each))
    generator, took = fit(steps)
    return generator, steps, took


def draw(generator: models.Generator, labels: np.ndarray, config: Any, device: str) -> Batch:
    own = config.generate
    batches = sampling.sample(generator, labels, seed=own.seed, chunk=own.chunk, batch=own.chunk, prefix="x", device=device)
    return Batch.concatenate(list(batches))


def _cas(order: Any, split: Any, images: Batch) -> float:
    """Accuracy on real test images of a classifier trained on these images alone, augmented."""
    config = order.config
    module = Classifier(config.classifier, split.spec, config.augment, config.seed)
    sources = [(images, config.classifier.batch_size)]
    settings = {"steps": config.classifier.steps, "seed": config.seed, "task": "accuracy", "progress": Silent()}
    training.fit(module, sources, device=order.device, precision=config.precision, **settings)
    test = split.role("test")
    return float((probabilities(module.network, test.images, "cpu").argmax(1) == test.labels).mean())


def grid(batch: Batch, columns: int = 16, scale: int = 3) -> np.ndarray:
    """A class a row."""
    rows = []
    for label in np.unique(batch.labels)[:10]:
        images = batch.images[batch.labels == label][:columns]
        images = np.concatenate([images, np.zeros((columns - len(images), *images.shape[1:]), np.uint8)])
        rows.append(np.concatenate(list(np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=96)), axis=2))
    whole = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    whole = whole.repeat(scale, axis=0).repeat(scale, axis=1)
    return whole if whole.shape[2] == 3 else whole[:, :, 0]


def show(rows: list[dict[str, Any]], num: int, asked: argparse.Namespace) -> None:
    """Means over seeds, with the standard deviation where there are several."""
    columns = [*FIGURES, *(["accuracy"] if asked.cas else []), "steps", "ms_a_sample"]
    print(f"\n{asked.data}, {num} train images, {asked.seconds:g} s a generator, seeds {asked.seeds}\n")
    print("| generator | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name in dict.fromkeys(row["generator"] for row in rows):
        own = [row for row in rows if row["generator"] == name]
        cells = []
        for column in columns:
            values = [row[column] for row in own if column in row]
            text = f"{np.mean(values):.3g}" if values else ""
            cells.append(text + (f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 and column in FIGURES else ""))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
