"""Planted copies: the share that is found at a calibrated threshold, and false alarms on real images that nobody saw.

    .venv/bin/python scripts/bench/copies.py [--quick] [--json FILE] [--device cuda]

Digits with 50 and 500 training images over several splits; CIFAR-10 with 10,000 training and 10,000 held-out images and
10,000 planted ones, if it is there (../shared/data or $SYNTHGEN_DATA: cifar10/train.parquet). Thresholds are conformal,
from held-out images with themselves left out; a third set of real images shows what they cost. Rules:

l2 < 1/3     nearest training image over the second nearest, plain pixels (Yoon et al. 2023, "Diffusion probabilistic
             models generalize when they fail to memorize"; Gu et al. 2023, "On memorization in diffusion models")
l2 < 2/3     the same
l2 to 50     nearest over the mean of the 50 nearest, plain pixels (Carlini et al. 2023, "Extracting training data from
             diffusion models"), calibrated as the next two
pixels       `copy_ratio`
features     `feature_copy_ratio` in the features of a random convolutional network: any extractor takes its place
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from machine import processor  # beside this script
from torch import nn

from synthgen.config.schema import DataConfig
from synthgen.data.planted import COPIES
from synthgen.data.sources import load
from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.metrics.copies import copy_ratio, feature_copy_ratio
from synthgen.metrics.neighbours import knn
from synthgen.randomness import stream

ALPHA = 0.01
Scores = dict[str, np.ndarray]
"""held_out, unseen, planted -> one figure an image, low where it looks like a copy."""

PLANTED = {
    **COPIES,
    "flip, shift 2 px, noise .1": lambda images, rng: COPIES["noise .1"](
        COPIES["shift 2 px"](COPIES["flip"](images, rng), rng), rng
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and splits: a check, no result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.device == "cpu":
        torch.set_num_threads(1)
    print(
        f"{processor()}, Python {platform.python_version()}, torch {version('torch')}, {asked.device}, "
        f"{torch.get_num_threads()} thread",
        flush=True,
    )
    digits = load(DataConfig(source="digits")).batch.images
    splits = 2 if asked.quick else 10
    runs = [
        run("digits 50/300", [parts(digits, 50, 300, 1000, 50, seed) for seed in range(splits)], 1, asked.device),
        run("digits 500/500", [parts(digits, 500, 500, 700, 500, seed) for seed in range(2)], 1, asked.device),
    ]
    num = 1_000 if asked.quick else 10_000
    try:
        cifar = load(DataConfig(source="parquet", path="cifar10/train.parquet")).batch.images
    except DataError as error:
        print(f"CIFAR-10 is left out: {error}")
    else:
        runs.append(run(f"cifar10 {num}/{num}", [parts(cifar, num, num, num, num // 10, 0)], 2, asked.device))
    if asked.json:
        about = {"torch": version("torch"), "machine": processor(), "device": asked.device, "alpha": ALPHA}
        asked.json.write_text(json.dumps({**about, "runs": runs}, indent=2) + "\n")


def parts(images: np.ndarray, train: int, held_out: int, unseen: int, planted: int, seed: int) -> dict[str, np.ndarray]:
    """Disjoint sets of real images; "planted": `planted` copies of each kind, or fewer if all kinds share the train images."""
    order = np.random.default_rng(seed).permutation(len(images))
    ends = np.cumsum([train, held_out, unseen])
    names = ("train", "held_out", "unseen")
    sets = {name: images[order[end - n : end]] for name, n, end in zip(names, (train, held_out, unseen), ends, strict=True)}
    originals = [sets["train"][:planted] if planted < 1_000 else sets["train"][i :: len(PLANTED)] for i in range(len(PLANTED))]
    plants = zip(PLANTED.items(), originals, strict=True)
    copied = [plant(chosen, stream(seed, f"plant {kind}")) for (kind, plant), chosen in plants]
    return {**sets, "planted": np.concatenate(copied), "kind": np.repeat(np.arange(len(copied)), [len(x) for x in copied])}


def run(name: str, splits: list[dict[str, np.ndarray]], search_px: int, device: str) -> dict:
    """Shares found, and CPU seconds for held-out, unseen and planted images together; means over splits."""
    found: dict[str, list[dict]] = {}
    for split in splits:
        for rule, (scores, limit, seconds) in rules(split, search_px, device).items():
            limit = conformal(scores["held_out"]) if limit is None else limit
            below = {part: (value < limit) | (value == 0) for part, value in scores.items()}
            row = {"threshold": limit, "false alarms": float(below["unseen"].mean())}
            row |= {kind: float(below["planted"][split["kind"] == i].mean()) for i, kind in enumerate(PLANTED)}
            found.setdefault(rule, []).append(row | {"CPU s": seconds})
    means = {rule: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} for rule, rows in found.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    columns = list(next(iter(means.values())))
    copied = len(splits[0]["planted"])
    print(f"\n{name}: {len(splits)} splits, {copied} planted, search {search_px} px and mirrored, peak memory {peak:.2f} GB\n")
    print(f"| rule | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for rule, row in means.items():
        print(f"| {rule} | " + " | ".join(f"{row[key]:.{1 if key == 'CPU s' else 3}f}" for key in columns) + " |", flush=True)
    return {"name": name, "splits": len(splits), "search_px": search_px, "peak_gb": peak, "rules": found}


def rules(split: dict[str, np.ndarray], search_px: int, device: str) -> dict[str, tuple[Scores, float | None, float]]:
    """Rule -> (scores of each set, their threshold if it isn't calibrated, CPU seconds)."""
    train, held_out = split["train"], split["held_out"]
    size = max(1, min(len(train), len(held_out) // 2))
    network = features(train.shape[1])

    def scored(rule: Callable[[np.ndarray, bool], np.ndarray]) -> tuple[Scores, float]:
        started = time.process_time()
        scores = {part: rule(split[part], part == "held_out") for part in ("held_out", "unseen", "planted")}
        return scores, time.process_time() - started

    def pixels(images: np.ndarray, is_held_out: bool) -> np.ndarray:
        return copy_ratio(images, train, held_out, size, search_px, True, is_held_out, device).ratio.numpy()

    def in_features(images: np.ndarray, is_held_out: bool) -> np.ndarray:
        return feature_copy_ratio(network(images), network(train), network(held_out), size, is_held_out).ratio.numpy()

    nearest, seconds = scored(lambda images, _: knn(flat(images), flat(train), 50)[0].numpy())
    to_second = {part: d[:, 0] / np.maximum(d[:, 1], 1e-12) for part, d in nearest.items()}
    to_fifty = {part: d[:, 0] / np.maximum(d.mean(axis=1), 1e-12) for part, d in nearest.items()}
    found, found_seconds = scored(pixels)
    found_in_features, feature_seconds = scored(in_features)
    return {
        "l2 < 1/3": (to_second, 1 / 3, seconds),
        "l2 < 2/3": (to_second, 2 / 3, seconds),
        "l2 to 50": (to_fifty, None, seconds),
        "pixels": (found, None, found_seconds),
        "features": (found_in_features, None, feature_seconds),
    }


def features(channels: int) -> Callable[[np.ndarray], np.ndarray]:
    """256 features by two convolutions with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()

    @torch.no_grad()
    def extract(images: np.ndarray) -> np.ndarray:
        return torch.cat([network(to_float(images[i : i + 256])) for i in range(0, len(images), 256)]).numpy()

    return extract


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def conformal(null: np.ndarray) -> float:
    """The value below which a new draw from the null falls with probability at most `ALPHA`."""
    return float(np.sort(null)[max(1, int((len(null) + 1) * ALPHA + 1e-9)) - 1])


if __name__ == "__main__":
    main()
