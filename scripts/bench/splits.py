"""The factory over several splits of the data: the gain of each arm with its interval over splits.

    .venv/bin/python scripts/bench/splits.py --splits 10 [--recipe digits] [--json FILE] [--quick]
    .venv/bin/python scripts/bench/splits.py --recipe cifar10-2k --splits 1 --out outputs/gpu device=cuda   (one GPU)

Each split is a run of its own in a fresh process, with its own train, val, reference and test images. An arm's figure
for a split is the mean over that run's classifier seeds; the interval is Student's t over splits.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from synthgen.gain.stats import mean_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first split seed")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one if not given")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two splits of digits-smoke: a check, no result")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    recipe, splits = ("digits-smoke", 2) if asked.quick else (asked.recipe, asked.splits)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}; recipe {recipe}, {splits} splits",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            one(recipe, seed, (asked.out or Path(scratch)) / f"split-{seed}", [*(FEW if asked.quick else []), *asked.settings])
            for seed in range(asked.first, asked.first + splits)
        ]
    result = summary(runs)
    show(result)
    if asked.json:
        asked.json.write_text(json.dumps({"recipe": recipe, "runs": runs, **result}, indent=2) + "\n")


def one(recipe: str, seed: int, out: Path, settings: list[str]) -> dict:
    """Runs a split and returns its verdict.json."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "synthgen", "run", recipe, "--out", str(out), "--json", f"split.seed={seed}", *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"split {seed}: {done.stderr.strip().splitlines()[-1]}")
    about = json.loads(done.stdout)
    kept = {name: f"{gate['kept']} {gate['verdict']}" for name, gate in about["gate"].items()}
    print(
        f"split {seed}: {about['verdict']}, {about['best_generator']}, gate {kept}, {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return about | {"split_seed": seed, "wall_s": time.perf_counter() - started}


FEW = [
    *("models=[gan]", "features.steps=40", "features.defect_steps=0", "generators.gan.steps=100"),
    *("gain.seeds=2", "gain.tune_seeds=0", "gain.curve=false", "gain.arms=[real_aug,synthetic_gated]"),
]
"""Settings of a check."""

PAIRS = (
    ("synthetic_gated", "real_aug"),
    ("synthetic_committee", "real_committee"),
    ("synthetic_trainval", "real_trainval"),
    ("synthetic_gated", "synthetic_ungated"),
)


def summary(runs: list[dict]) -> dict:
    """Arm -> mean accuracy and mean difference to the arms that matter, with intervals over the splits that ran it."""
    studied = [run["arms"] for run in runs if run["arms"]]
    arms = {}
    for arm in dict.fromkeys(name for run in studied for name in run):
        ran = [run[arm] for run in studied if arm in run]  # a split may skip one: a partner that is an arm already, say
        arms[arm] = {
            "splits": len(ran),
            "accuracy": mean_interval(100 * np.array([row["test_accuracy"] for row in ran])),
            "difference_to_best_real": mean_interval(np.array([row["difference"] for row in ran])),
        }
    pairs = {}
    for a, b in PAIRS:
        both = [100 * (run[a]["test_accuracy"] - run[b]["test_accuracy"]) for run in studied if a in run and b in run]
        if both:
            pairs[f"{a} - {b}"] = mean_interval(np.array(both))
    best = [row["difference"] for run in studied for row in run.values() if row["best_synthetic"]]
    if best:
        pairs["strongest synthetic - strongest real-only, both chosen on val"] = mean_interval(np.array(best))
    verdicts = {verdict: sum(run["verdict"] == verdict for run in runs) for verdict in ("use", "reject", "insufficient evidence")}
    return {
        "arms": arms,
        "pairs": pairs,
        "verdicts": verdicts,
        "wall_s": [run["wall_s"] for run in runs],
        "studied": len(studied),
    }


def show(result: dict) -> None:
    """The table, as it goes into the log."""
    print(
        f"\n{result['studied']} splits studied; verdicts {result['verdicts']}; median {np.median(result['wall_s']):.0f} s a run\n"
    )
    print("| arm | splits | test accuracy, % (95% over splits) | minus strongest real-only of its run |\n|---|---|---|---|")
    for arm, row in result["arms"].items():
        print(f"| {arm} | {row['splits']} | {text(row['accuracy'], '')} | {text(row['difference_to_best_real'])} |")
    print("\n| pair | points (95% over splits) |\n|---|---|")
    for pair, interval in result["pairs"].items():
        print(f"| {pair} | {text(interval)} |")


def text(interval: tuple[float, float, float], sign: str = "+") -> str:
    mean, low, high = interval
    return f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


if __name__ == "__main__":
    main()
