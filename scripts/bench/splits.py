"""The factory over several splits of the data: the gain of each arm with its interval over splits.

    .venv/bin/python scripts/bench/splits.py --splits 10 [--recipe digits] [--out FOLDER] [--json FILE]
    .venv/bin/python scripts/bench/splits.py --recipe cifar10-2k --splits 1 --out outputs/gpu device=cuda   (one GPU)
    .venv/bin/python scripts/bench/splits.py --sum FOLDER [--first 20 --splits 7]     of runs that are finished: seconds
    .venv/bin/python scripts/bench/splits.py --sum docs/results/digits-200.json       of what --json wrote
    .venv/bin/python scripts/bench/splits.py --quick                                  a check, no result; under a minute

Each split is a run of its own in a fresh process, FOLDER/split-N, with its own train, val, reference and test images. An
arm's figure for a split is the mean over that run's classifier seeds; the interval is Student's t over splits. Where one
split alone has an arm or a pair, its interval is the run's own, over seeds (and, of a pair that the run compared, over test
images). A pair that no run has is left out.

The splits are of the same images: two of them that lock half of all away as a test set share half of it. The interval over
splits takes them for independent. With `--overlap SHARE` a second one counts the share of a test set that two splits have in
common, 0.5 there, 1 for a given test set: variance over splits / their number + SHARE x variance over test images, the
latter at most what the runs' own intervals say (they hold the seeds' luck too). It is told of pairs whose runs kept theirs.

`chosen on val` is the strongest single network (no committee, nothing classical) on the train images; `best on test` is the
one that did best on the very test images, with or without val's labels: a bar that nobody can choose beforehand.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, versions  # beside this script
from scipy import stats as distributions

from synthgen.gain.arms import recipe_of
from synthgen.gain.stats import mean_interval

Row = dict[str, Any]

FEW = [
    *("workers=1", "models=[gan]", "features.steps=40", "features.defect_steps=0", "generators.gan.steps=100"),
    *("classifier.steps=20", "gain.seeds=2", "gain.tune_seeds=0", "gain.curve=false", "gain.arms=[real_aug,synthetic_gated]"),
]
"""Settings of a check."""

PAIRS = (
    ("synthetic_gated", "real_aug"),
    ("synthetic_gated", "synthetic_ungated"),
    ("synthetic_pool", "pool_labels"),
    ("synthetic_pool", "transfer_pool"),
    ("transfer_pool", "pool_labels"),
    ("synthetic_fixmatch", "fixmatch"),
    ("synthetic_partner", "transfer"),
    ("synthetic_committee", "real_committee"),
    ("synthetic_trainval", "real_trainval"),
    ("synthetic_only", "real_committee"),
    ("synthetic_pool_with_copies", "synthetic_pool"),
    ("real_longer", "real_aug"),
    ("oracle", "real_aug"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, help="how many; 10, or with --sum all that are there")
    parser.add_argument("--first", type=int, default=0, help="first split seed")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--out", type=Path, help="folder of the runs; a temporary one if not given")
    about_sum = "run nothing: sum the finished runs FOLDER/split-N, or those in a file that --json wrote"
    parser.add_argument("--sum", type=Path, metavar="FOLDER|FILE", help=about_sum)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--overlap", type=float, help="share of a split's test images that are another's too: 0.5 for split.test=0.5"
    )
    parser.add_argument("--quick", action="store_true", help="two splits of digits-smoke: a check, no result")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args()
    recipe, splits = ("digits-smoke", 2) if asked.quick else (asked.recipe, asked.splits or 10)
    what = {"summed": str(asked.sum)} if asked.sum else {"recipe": recipe}
    about: Row = {"machine": machine(), "versions": versions("torch", "synthgen"), **what}
    print("\n".join(f"{key}: {value}" for key, value in (about | about["machine"]).items()), flush=True)
    if asked.sum:
        runs = there(asked.sum, asked.first, asked.splits)
    else:
        settings = [*(FEW if asked.quick else []), *asked.settings]
        at_once, threads_each = (2, {"OMP_NUM_THREADS": "1"}) if asked.quick else (1, {})  # a run that counts has all cores
        with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(at_once) as threads:
            begin = partial(one, recipe, folder=asked.out or Path(scratch), settings=settings, env=os.environ | threads_each)
            runs = list(threads.map(begin, range(asked.first, asked.first + splits)))
    result = about | {"runs": runs, **summary(runs, asked.overlap)}
    show(result)
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(run) for run in map(slim, runs))  # a line a run: a diff shows which are new
        head = json.dumps(result | {"runs": []}, indent=1)
        asked.json.write_text(head.replace('"runs": []', f'"runs": [\n{lines}\n ]') + "\n")


def there(place: Path, first: int, splits: int | None) -> list[Row]:
    """The splits that were asked for; without a number, all from the first on that are finished."""
    kept = {}
    if place.is_file():
        kept = {run["split_seed"]: run for run in json.loads(place.read_text(encoding="utf-8"))["runs"]}
    seeds = sorted(kept or (int(path.parent.name.removeprefix("split-")) for path in place.glob("split-*/verdict.json")))
    wanted = [seed for seed in seeds if seed >= first] if splits is None else list(range(first, first + splits))
    if not wanted or (kept and not set(wanted) <= set(seeds)):
        sys.exit(
            f"--sum {place}: of the splits asked for, none or not all are there as finished runs; there are {seeds or 'none'}"
        )
    return [kept[seed] if kept else finished(place, seed) for seed in wanted]


OF_ARM = (
    *("recipe", "synthetic", "simulation", "networks", "num_real", "num_synthetic", "dial_value"),
    *("val_accuracy", "test_accuracy", "low", "high", "difference", "difference_low", "difference_high"),
    *("macro_f1", "worst_class", "ece", "p_holm", "effect_size", "best_real", "best_synthetic", "seconds"),
)
"""What is kept of an arm: enough for every table here."""

SCORES = {"macro_f1": 100, "worst_class": 100, "ece": 1}
"""Other scores on test, means over seeds, and what they are multiplied with for the table."""


def slim(run: Row) -> Row:
    """A run without what no table here needs, figures to six places."""
    arms = {name: {key: brief(row.get(key)) for key in OF_ARM} for name, row in run["arms"].items()}
    gates = {name: {"verdict": gate["verdict"], "kept": gate["kept"]} for name, gate in run.get("gate", {}).items()}
    pairs = [
        {key: brief(i[key]) for key in ("arm", "baseline", "low", "high")}
        for i in run["intervals"]
        if (i["arm"], i["baseline"]) in PAIRS
    ]
    exchange = [{key: brief(each[key]) for key in ("arm", "num_real", "equivalent", "low", "high")} for each in run["exchange"]]
    kept = {key: run[key] for key in ("split_seed", "verdict", "best_generator", "wall_s") if key in run}
    return kept | {"gate": gates, "arms": arms, "intervals": pairs, "exchange": exchange}


def brief(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def one(recipe: str, seed: int, *, folder: Path, settings: list[str], env: Mapping[str, str]) -> Row:
    """Runs a split; see `finished`."""
    started, out = time.perf_counter(), folder / f"split-{seed}"
    command = [sys.executable, "-m", "synthgen", "run", recipe, "--out", str(out), "--json", f"split.seed={seed}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"split {seed}: {done.stderr.strip().splitlines()[-1]}")
    about = finished(folder, seed) | {"wall_s": time.perf_counter() - started}
    kept = {name: f"{gate['kept']} {gate['verdict']}" for name, gate in about["gate"].items()}
    print(f"split {seed}: {about['verdict']}, {about['best_generator']}, gate {kept}, {about['wall_s']:.0f} s", flush=True)
    return about


def finished(folder: Path, seed: int) -> Row:
    """verdict.json of a split, with the intervals and the exchange rates that its study found."""
    out = folder / f"split-{seed}"
    if not (out / "verdict.json").is_file():
        sys.exit(f"{out}: no verdict.json; is the run finished?")
    about = json.loads((out / "verdict.json").read_text(encoding="utf-8"))
    studied = out / "gain" / "gain.json"
    study = json.loads(studied.read_text(encoding="utf-8")) if about["arms"] and studied.is_file() else {}
    exchange = (study.get("curve") or {}).get("exchange", [])
    return about | {"split_seed": seed, "intervals": study.get("intervals", []), "exchange": exchange}


def summary(runs: list[Row], overlap: float | None = None) -> Row:
    """Arm -> mean accuracy and mean difference to the arms that matter, with intervals over the splits that ran it."""
    studied = [run for run in runs if run["arms"]]
    arms = {}
    for arm in dict.fromkeys(name for run in studied for name in run["arms"]):
        rows = [
            run["arms"][arm] for run in studied if arm in run["arms"]
        ]  # a split may skip one: a partner that is an arm already
        arms[arm] = {
            "accuracy": over([[100 * row[key] for key in ("test_accuracy", "low", "high")] for row in rows]),
            "difference_to_best_real": over([[row[f"difference{key}"] for key in ("", "_low", "_high")] for row in rows]),
            **{name: mean_of([row.get(name) for row in rows], times) for name, times in SCORES.items()},
        }
    verdicts = {verdict: sum(run["verdict"] == verdict for run in runs) for verdict in ("use", "reject", "insufficient evidence")}
    return {
        "arms": arms,
        "pairs": pairs(studied, overlap),
        "exchange": [each | {"split_seed": run["split_seed"]} for run in studied for each in run["exchange"]],
        "verdicts": verdicts,
        "wall_s": [run["wall_s"] for run in runs if "wall_s" in run],
        "studied": len(studied),
    }


def mean_of(values: list[float | None], times: float) -> float | None:
    """None where a split doesn't say it: what was kept by older versions has no scores but accuracy."""
    return None if None in values else times * float(np.mean(values))


def pairs(studied: list[Row], overlap: float | None = None) -> dict[str, Row]:
    """Pair -> difference in points of test accuracy."""
    found: dict[str, list[list[float | None]]] = {
        f"{a} - {b}": [difference(run, a, b) for run in having(studied, a, b)] for a, b in PAIRS
    }
    alone = having(studied, "synthetic_only")
    for what, choose in (("chosen on val", chosen_on_val), ("best on test", best_on_test)):
        against = [(run, choose(run["arms"])) for run in alone]
        found[f"synthetic_only - single real-only network, {what}"] = [
            difference(run, "synthetic_only", arm) for run, arm in against if arm
        ]
    best = [row for run in studied for row in run["arms"].values() if row["best_synthetic"]]
    strongest = [[row["difference"], row["difference_low"], row["difference_high"]] for row in best]
    found["strongest synthetic - strongest real-only, both chosen on val"] = strongest
    return {pair: over(each) | shared(each, overlap) for pair, each in found.items() if each}


def having(studied: list[Row], *arms: str) -> list[Row]:
    return [run for run in studied if all(arm in run["arms"] for arm in arms)]


def difference(run: Row, a: str, b: str) -> list[float | None]:
    """Points of test accuracy between two arms of a run, with the run's own interval if it compared them."""
    limits = [[i["low"], i["high"]] for i in run["intervals"] if (i["arm"], i["baseline"]) == (a, b)]
    return [100 * (run["arms"][a]["test_accuracy"] - run["arms"][b]["test_accuracy"]), *(limits[0] if limits else (None, None))]


def single(arms: Row) -> dict[str, Row]:
    """Arms that are one network on real images."""
    real = {name: row for name, row in arms.items() if not row["synthetic"] and not row["simulation"] and row["networks"] == 1}
    return {name: row for name, row in real.items() if recipe_of(row["recipe"]).kind == "network"}


def chosen_on_val(arms: Row) -> str | None:
    judged = {name: row["val_accuracy"] for name, row in single(arms).items() if row["val_accuracy"] is not None}
    return max(judged, key=judged.__getitem__, default=None)


def best_on_test(arms: Row) -> str | None:
    tested = {name: row["test_accuracy"] for name, row in single(arms).items()}
    return max(tested, key=tested.__getitem__, default=None)


def over(each: list[list[float | None]]) -> Row:
    """Mean of (value, low, high) over splits with a t interval; of one split its own interval, if it has one."""
    mean, low, high = mean_interval(np.array([value for value, _, _ in each], float)) if len(each) > 1 else each[0]
    return {"mean": mean, "low": low, "high": high, "splits": len(each), "interval_over": "splits" if len(each) > 1 else "seeds"}


def shared(each: list[list[float | None]], overlap: float | None) -> Row:
    """The interval that counts the test images which splits have in common, at its widest; empty where it can't be told."""
    if overlap is None or len(each) < 2 or any(low is None for _, low, _ in each):
        return {}
    values, low, high = (np.array(column, float) for column in zip(*each, strict=True))
    images = float(np.mean(((high - low) / 2 / 1.96) ** 2))
    error = math.sqrt(values.var(ddof=1) / len(values) + overlap * images)
    half = float(distributions.t.ppf(0.975, len(values) - 1)) * error
    return {
        "low_shared": float(values.mean()) - half,
        "high_shared": float(values.mean()) + half,
        "median": float(np.median(values)),
    }


def show(result: Row) -> None:
    """The table, as it goes into the log."""
    wall = f"; median {np.median(result['wall_s']):.0f} s a run" if result["wall_s"] else ""
    print(f"\n{result['studied']} splits studied; verdicts {result['verdicts']}{wall}\n")
    print("| arm | splits | test accuracy, % (95% over splits) | minus strongest real-only of its run |\n|---|---|---|---|")
    for arm, row in result["arms"].items():
        accuracy = row["accuracy"]
        print(f"| {arm} | {accuracy['splits']} | {text(accuracy, '')} | {text(row['difference_to_best_real'])} |")
    if any(row["macro_f1"] is not None for row in result["arms"].values()):
        print("\n| arm | macro-F1, % | recall of the worst class, % | ECE |\n|---|---|---|---|")
        for arm, row in result["arms"].items():
            figures = (row["macro_f1"], ".1f"), (row["worst_class"], ".1f"), (row["ece"], ".3f")
            print(f"| {arm} | {' | '.join('-' if value is None else format(value, form) for value, form in figures)} |")
    told = any("low_shared" in row for row in result["pairs"].values())
    more = " median | at widest, for the test images that splits share |" if told else ""
    print(f"\n| pair | splits | points (95% over splits) |{more}\n|---|---|---|{'---|---|' if told else ''}")
    for pair, row in result["pairs"].items():
        wide = f" {row['median']:+.2f} | {row['low_shared']:+.2f} to {row['high_shared']:+.2f} |" if "low_shared" in row else ""
        print(f"| {pair} | {row['splits']} | {text(row)} |{wide or ' | |' * told}")
    if result["exchange"]:
        print("\n| split | arm | real images it had | worth as many real images (95%) |\n|---|---|---|---|")
    for row in result["exchange"]:
        if row["equivalent"] is not None:
            low, high = (f"{row[end]:.0f}" if row[end] is not None else "beyond what was measured" for end in ("low", "high"))
            print(f"| {row['split_seed']} | {row['arm']} | {row['num_real']} | {row['equivalent']:.0f} ({low} to {high}) |")


def text(row: Row, sign: str = "+") -> str:
    if row["low"] is None:
        return f"{row['mean']:{sign}.2f} (one split, no interval)"
    alone = ", over seeds" if row["interval_over"] == "seeds" else ""
    return f"{row['mean']:{sign}.2f} ({row['low']:{sign}.2f} to {row['high']:{sign}.2f}{alone})"


if __name__ == "__main__":
    main()
