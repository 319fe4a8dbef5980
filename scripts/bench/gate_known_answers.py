"""The gate's known answers: for each planted defect, was the set rejected, were the samples dropped, and by what.

    .venv/bin/python scripts/bench/gate_known_answers.py [--data digits cifar10] [--seeds 0 1 2] [--json FILE] [--quick]

Digits: 50 labelled train images, 50 val, 300 unlabelled reference ones. CIFAR-10 (Parquet, looked for in $SYNTHGEN_DATA
and ../shared/data): 5,000 train, 1,000 val, 4,000 labelled reference images. Real images that nobody saw play the
generator. A defect passes unseen if the set is accepted, less than 90% of the planted samples are dropped, and the report notices
nothing beyond chance.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from machine import processor  # beside this script
from PIL import Image

from synthgen import jobs
from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.errors import DataError
from synthgen.gate.sensitivity import planted_recall
from synthgen.jobs.gates import Judging
from synthgen.jobs.known_answers import Answer, KnownAnswers
from synthgen.types import Batch

SETTINGS = {
    "digits": ("digits", []),
    "cifar10": (
        "cifar10-2k",
        [
            *("split.train=5000", "split.val=1000", "split.reference=4000", "split.reference_labelled=true", "split.test=10000"),
            *("features.width=16", "features.steps=900", "features.folds=2", "features.dim=64", "classifier.batch_size=64"),
            *("features.defect_steps=600", "features.defect_batch_size=32", "gate.splits=20"),
        ],
    ),
}
"""Data set -> recipe and settings."""

QUICK = ["features.steps=60", "features.width=16", "features.folds=2", "gate.splits=20"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, help="splits; default: 0 1 2 of digits, 0 of CIFAR-10")
    parser.add_argument("--num", type=int, help="samples a set; default: 800 of digits, 2,000 of CIFAR-10")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="digits, one split, small networks, 300 a set: a check, no result")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    print(
        f"{processor()}, Python {platform.python_version()}, torch {version('torch')}, synthgen {version('synthgen')}",
        flush=True,
    )
    torch.set_num_threads(1)  # what the gate's stages run with, so that the same bytes come out
    results = {}
    for data in ["digits"] if asked.quick else asked.data:
        seeds = asked.seeds or ([0, 1, 2] if data == "digits" else [0])
        num = asked.num or (800 if data == "digits" else 2000)
        extra = [*(QUICK if asked.quick else []), *asked.settings]
        runs = []
        for seed in [0] if asked.quick else seeds:
            try:
                runs.append(one(data, seed, 300 if asked.quick else num, extra))
            except DataError as error:
                print(f"{data}: left out: {error}", flush=True)
                break
        if runs:
            results[data] = runs
            show(data, runs)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n")
    unseen = [f"{data}: {a['name']} {a['share']:.0%}" for data, runs in results.items() for r in runs for a in r["unseen"]]
    print(f"\nplanted at 20% or more and passed unseen: {', '.join(unseen) or 'none'}")
    sys.exit(bool(unseen))


def one(data: str, seed: int, num: int, extra: list[str]) -> dict:
    """Trains the gate's networks on a split and asks about every planted set."""
    started = time.perf_counter()
    recipe, settings = SETTINGS[data]
    config: RunConfig = load(recipe, [*settings, f"split.seed={seed}", f"seed={seed}", "tracking=off", *extra])
    with tempfile.TemporaryDirectory() as scratch:
        order, folder = jobs.Order(config), Path(scratch)
        jobs.audit(order, folder)
        split = jobs.Split.open(folder)
        jobs.features(order, split, folder / "features")
        judging = Judging(order, split, folder / "features")
        real = judging.real()
        strangers = outliers(split.spec.image_shape, num)
        trained = time.perf_counter()
        asking = KnownAnswers(
            real, split.role("test"), strangers, judging.evidence, config.gate, split.spec.class_names, num, seed, order.device
        )
        planted = planted_recall(real, asking.calibration, config.gate, judging.evidence, seed, order.device)
        answers = list(progress(asking.answers()))
    calibration = asking.calibration
    print(
        f"{data}, split {seed}: {num} a set, networks {trained - started:.0f} s, "
        f"{len(answers)} sets {time.perf_counter() - trained:.0f} s",
        flush=True,
    )
    return {
        "seed": seed,
        "thresholds": calibration.thresholds,
        "real_dropped": calibration.real_dropped,
        "planted": [asdict(p) for p in planted],
        "answers": [asdict(a) | {"seen": a.seen} for a in answers],
        "unseen": [asdict(a) for a in answers if a.share >= 0.2 and not a.seen],
    }


def progress(answers: Iterator[Answer]) -> Iterator[Answer]:
    for answer in answers:
        if sys.stderr.isatty():
            print(f"\r{answer.name:60}", end="", file=sys.stderr)
        yield answer


def outliers(shape: tuple[int, int, int], num: int) -> Batch:
    """Images of something else in this shape: pieces of scikit-learn's two photographs for digits, digits for photographs."""
    from sklearn.datasets import load_digits, load_sample_images

    channels, height, width = shape
    if channels == 1:
        pieces = []
        for photograph in load_sample_images().images:
            grey = photograph.mean(axis=2).astype(np.uint8)
            for y in range(0, grey.shape[0] - 31, 32):
                for x in range(0, grey.shape[1] - 31, 32):
                    pieces.append(
                        np.asarray(Image.fromarray(grey[y : y + 32, x : x + 32]).resize((width, height), Image.Resampling.BOX))
                    )
        images = np.stack(pieces)[:num, None]
    else:
        digits = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:num]
        grey = np.stack([np.asarray(Image.fromarray(d).resize((width, height), Image.Resampling.BICUBIC)) for d in digits])
        images = np.repeat(grey[:, None], channels, axis=1)
    return Batch(images, np.zeros(len(images), np.int64), tuple(f"outlier-{i}" for i in range(len(images))))


def show(data: str, runs: list[dict]) -> None:
    """The tables, as they go into docs/gate.md."""
    print(f"\n### {data}: {len(runs)} split(s), held-out real images dropped {mean(r['real_dropped'] for r in runs):.3f}\n")
    print("| planted in real images | kind | found | by |\n|---|---|---|---|")
    for rows in zip(*(r["planted"] for r in runs), strict=True):
        print(f"| {rows[0]['name']} | {rows[0]['kind']} | {mean(p['found'] for p in rows):.2f} | {reasons(rows)} |")
    print("\n| candidates | planted | verdict | kept | planted dropped | good dropped | reasons | set rejected by | noticed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in zip(*(r["answers"] for r in runs), strict=True):
        first = rows[0]
        verdicts = {v: sum(a["verdict"] == v for a in rows) for v in ("accept", "reject", "insufficient evidence")}
        verdict = ", ".join(f"{v} {count}" if len(rows) > 1 else v for v, count in verdicts.items() if count)
        broken = sorted({name for a in rows for name in a["broken"]})
        cells = [
            first["name"],
            f"{first['share']:.0%}" if first["share"] else "the set",
            verdict,
            f"{mean(a['kept'] for a in rows):.2f}",
            share(rows, "found"),
            share(rows, "good_dropped"),
            reasons(rows),
            ", ".join(broken) if len(broken) < 8 else "all classes empty",
            f"{mean(bool(a['notices']) for a in rows):.0%}",
        ]
        print(f"| {' | '.join(cells)} |")
    families = list(runs[0]["answers"][0]["auroc"] or next(a["auroc"] for a in runs[0]["answers"] if a["auroc"]))
    print(f"\nAUROC against good samples, at 50%\n\n| defect | {' | '.join(families)} |\n|---|{'---|' * len(families)}")
    for rows in zip(*(r["answers"] for r in runs), strict=True):
        if rows[0]["auroc"] and rows[0]["share"] == 0.5:
            figures = [f"{mean(a['auroc'][name] for a in rows):.2f}" for name in families]
            print(f"| {rows[0]['name']} | {' | '.join(figures)} |")


def mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def share(rows: tuple[dict, ...], key: str) -> str:
    values = [a[key] for a in rows if a[key] is not None]
    return f"{np.mean(values):.2f}" if values else ""


def reasons(rows: tuple[dict, ...]) -> str:
    names = dict.fromkeys(name for a in rows for name in a["reasons"])
    means = {name: float(np.mean([a["reasons"].get(name, 0) for a in rows])) for name in names}
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(means.items(), key=lambda x: -x[1]) if value >= 0.05)


if __name__ == "__main__":
    main()
