"""The scripts: every benchmark explains itself, has a quick check, and can leave its figures in a file."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "scripts" / "bench").glob("*.py"))
PARTS = {"peers.py": "metrics.py", "generator_peers.py": "generators.py", "shard_peers.py": "shards.py", "machine.py": "gain.py"}
"""A part of a benchmark (one measurement, in a process of its own; the machine's name) -> the benchmark, or one of them."""


def help_of(path: Path) -> str:
    done = subprocess.run([sys.executable, str(path), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_there_are_benchmarks():
    names = {path.name for path in BENCHMARKS}
    assert len(names - set(PARTS)) >= 4
    assert set(PARTS) | set(PARTS.values()) <= names


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_a_benchmark_has_a_quick_check_and_leaves_its_figures_in_a_file(path):
    said = help_of(path)
    options = said.split("options:")[-1]
    if path.name not in PARTS:
        assert "--quick" in options
        assert "--json" in options
        assert f"scripts/bench/{path.name}" in said, "a line to copy"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def figures_of(script: str, path: Path, *arguments: str) -> dict:
    """What a benchmark leaves in its file; one thread, since spinning threads take their time on a busy machine."""
    command = [sys.executable, str(ROOT / "scripts" / "bench" / script), *arguments, "--json", str(path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text(encoding="utf-8")) | {"said": done.stdout}


def test_the_gain_studys_speed_is_compared_like_with_like_and_with_the_target(tmp_path):
    found = figures_of("gain.py", tmp_path / "gain.json", "--quick")
    assert "cores" in found["machine"]["machine"]
    assert {"Python", "torch", "pytorch-lightning"} <= {word.split()[0] for word in found["versions"].split(", ")}
    (case,) = found["cases"]
    took = {name: statistics.median(row["s"]) for name, row in case["contenders"].items()}
    two, one, alone = "2 processes of 1 thread", "1 process of 1 thread", "lightning, 1 process of 1 thread (default)"
    ways = ("ours", "one by one", "lightning", "bare")
    assert set(took) == {f"{way}, {rule}" for way in ways for rule in (two, one)} | {alone}
    target, both_two, both_one = case["ratios"]
    assert target["what"].startswith("target")
    assert (target["ours"], target["against"]) == (f"ours, {two}", alone)
    for row, rule in ((both_two, two), (both_one, one)):
        assert row["what"] == f"like with like: {rule} on both sides"
        assert row["ours"] == f"ours, {rule}"
        assert row["against"] == min((f"{way}, {rule}" for way in ("one by one", "lightning")), key=took.__getitem__)
    for row in case["ratios"]:
        assert row["ratio"] == pytest.approx(took[row["against"]] / took[row["ours"]])
        assert (row["target"], row["met"]) == (3, row["ratio"] >= 3)
        assert f"| {row['ratio']:.2f} | 3 | {'met' if row['met'] else 'missed'} |" in found["said"]
    assert [row["bound"] for row in case["bounds"]] == [f"bare, {two}", f"bare, {one}"]
    for row in case["bounds"]:
        assert row["share"] == pytest.approx(took[row["bound"]] / took[row["ours"]])


def arm(test: float, val: float | None = None, recipe: str = "real_aug", synthetic: bool = False, **more: object) -> dict:
    """A row of verdict.json, as far as splits.py reads it."""
    row = {"test_accuracy": test, "low": test - 0.1, "high": test + 0.1, "val_accuracy": val, "recipe": recipe}
    row |= {"synthetic": synthetic, "simulation": False, "networks": 1, "best_real": False, "best_synthetic": False}
    return row | {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0} | more


@pytest.fixture(scope="module")
def three_splits(tmp_path_factory):
    """Finished runs: three of samples alone, two of them with a pool, one with FixMatch; and one that no sample came through."""
    folder = tmp_path_factory.mktemp("splits")
    runs = [
        {
            "svm_pixels": arm(0.995, 0.99, "svm_pixels"),  # no network
            "real_aug": arm(0.92, 0.90),
            "real_mixup": arm(0.95, 0.89, "real_mixup"),  # better on test, which chooses nothing
            "real_trainval": arm(0.96, None, "real_mixup@all"),  # nor can val choose it
            "oracle": arm(0.999, 0.99, simulation=True),
            "real_committee": arm(0.97, 0.98, networks=3),
            "synthetic_only": arm(only, 0.9, "synthetic_only", True),
        }
        for only in (0.91, 0.90, 0.89)
    ]
    for run, with_pool in zip(runs, (0.91, 0.93), strict=False):
        run["pool_labels"] = arm(0.90, 0.5, "pool_labels")
        run["synthetic_pool"] = arm(with_pool, 0.5, "synthetic_pool", True, best_synthetic=True, difference=-2.0)
    runs[2] |= {"fixmatch": arm(0.90, 0.5, "fixmatch"), "synthetic_fixmatch": arm(0.91, 0.5, "synthetic_fixmatch", True)}
    runs[2]["synthetic_gated"] = arm(0.93, 0.5, "synthetic_gated", True)
    for seed, arms in enumerate([*runs, {}]):
        split = folder / f"split-{seed}"
        (split / "gain").mkdir(parents=True)
        about = {"verdict": "reject" if seed else "insufficient evidence", "arms": arms}
        (split / "verdict.json").write_text(json.dumps(about), encoding="utf-8")
    interval = {"arm": "synthetic_fixmatch", "baseline": "fixmatch", "difference": 1.0, "low": -0.5, "high": 2.5}
    worth = {"arm": "synthetic_only", "num_real": 300, "equivalent": 185.4, "low": 112.2, "high": None}
    study = {"intervals": [interval], "curve": {"exchange": [worth]}}
    (folder / "split-2" / "gain" / "gain.json").write_text(json.dumps(study), encoding="utf-8")
    (folder / "split-9").mkdir()  # begun, not finished
    return folder


def test_finished_splits_are_summed_as_by_hand(three_splits, tmp_path):
    found = figures_of("splits.py", tmp_path / "splits.json", "--sum", str(three_splits))
    assert "cores" in found["machine"]["machine"]
    assert found["versions"].startswith("Python ")
    assert (found["summed"], found["studied"]) == (str(three_splits), 3)
    assert found["verdicts"] == {"use": 0, "reject": 3, "insufficient evidence": 1}
    pairs = {pair: (row["mean"], row["low"], row["high"], row["splits"]) for pair, row in found["pairs"].items()}
    of_three = 4.302653 / 3**0.5  # Student's t with 2 degrees of freedom; the differences are a point apart
    of_two = 12.706205  # with 1, and +1 and +3
    by_hand = {
        "synthetic_pool - pool_labels": (2, 2 - of_two, 2 + of_two, 2),
        "synthetic_fixmatch - fixmatch": (1, -0.5, 2.5, 1),
        "synthetic_gated - real_aug": (1, None, None, 1),
        "oracle - real_aug": (7.9, 7.9, 7.9, 3),
        "synthetic_only - real_committee": (-7, -7 - of_three, -7 + of_three, 3),
        "synthetic_only - single real-only network, chosen on val": (-2, -2 - of_three, -2 + of_three, 3),
        "synthetic_only - single real-only network, best on test": (-6, -6 - of_three, -6 + of_three, 3),
        "strongest synthetic - strongest real-only, both chosen on val": (-2, -2, -2, 2),
    }
    assert set(pairs) == set(by_hand)
    for pair, expected in by_hand.items():
        assert pairs[pair] == tuple(pytest.approx(value, abs=1e-4) if value is not None else None for value in expected), pair
    accuracy = found["arms"]["synthetic_only"]["accuracy"]
    assert (accuracy["mean"], accuracy["low"]) == (pytest.approx(90), pytest.approx(90 - of_three, abs=1e-4))
    for line in (
        "| synthetic_fixmatch - fixmatch | 1 | +1.00 (-0.50 to +2.50, over seeds) |",
        "| synthetic_gated - real_aug | 1 | +1.00 (one split, no interval) |",
        "| synthetic_only - real_committee | 3 | -7.00 (-9.48 to -4.52) |",
        "| 2 | synthetic_only | 300 | 185 (112 to beyond what was measured) |",
    ):
        assert line in found["said"]


def test_of_finished_splits_those_that_are_asked_for_are_summed(three_splits, tmp_path):
    found = figures_of("splits.py", tmp_path / "splits.json", "--sum", str(three_splits), "--first", "1", "--splits", "2")
    assert [run["split_seed"] for run in found["runs"]] == [1, 2]
    assert found["pairs"]["synthetic_only - real_committee"]["mean"] == pytest.approx(-7.5)


def test_a_file_that_was_written_sums_to_the_same(three_splits, tmp_path):
    first = figures_of("splits.py", tmp_path / "kept" / "splits.json", "--sum", str(three_splits))
    again = figures_of("splits.py", tmp_path / "again.json", "--sum", str(tmp_path / "kept" / "splits.json"))
    changed = {"summed", "machine", "said"}
    assert {key: value for key, value in again.items() if key not in changed} == {
        key: value for key, value in first.items() if key not in changed
    }
    one = figures_of("splits.py", tmp_path / "one.json", "--sum", str(tmp_path / "again.json"), "--first", "2", "--splits", "1")
    assert [run["split_seed"] for run in one["runs"]] == [2]


def test_test_images_that_splits_share_are_counted_where_the_runs_say_how_much_they_matter(tmp_path):
    for seed, points in enumerate((1.0, 2.0, 3.0)):
        (tmp_path / f"split-{seed}" / "gain").mkdir(parents=True)
        arms = {
            "pool_labels": arm(0.9, 0.5, "pool_labels"),
            "synthetic_pool": arm(0.9 + points / 100, 0.5, "synthetic_pool", True),
        }
        arms["real_aug"] = arm(0.8, 0.5)
        arms["oracle"] = arm(0.9, 0.5, simulation=True)  # of which no run kept an interval
        (tmp_path / f"split-{seed}" / "verdict.json").write_text(
            json.dumps({"verdict": "reject", "arms": arms}), encoding="utf-8"
        )
        own = {"arm": "synthetic_pool", "baseline": "pool_labels", "low": points - 1.96, "high": points + 1.96}
        (tmp_path / f"split-{seed}" / "gain" / "gain.json").write_text(json.dumps({"intervals": [own]}), encoding="utf-8")
    found = figures_of("splits.py", tmp_path / "splits.json", "--sum", str(tmp_path), "--overlap", "0.5")
    pair = found["pairs"]["synthetic_pool - pool_labels"]
    half = 4.302653 * (1 / 3 + 0.5) ** 0.5  # a variance of 1 over splits, and one of 1 over images of which half are shared
    assert (pair["low_shared"], pair["high_shared"]) == (pytest.approx(2 - half, abs=1e-4), pytest.approx(2 + half, abs=1e-4))
    assert "low_shared" not in found["pairs"]["oracle - real_aug"]
    assert "| synthetic_pool - pool_labels | 3 | +2.00 (-0.48 to +4.48) | +2.00 | -1.93 to +5.93 |" in found["said"]
    assert "| oracle - real_aug | 3 | +10.00 (+10.00 to +10.00) | | |" in found["said"]


def test_a_split_that_is_asked_for_and_not_finished_is_named(three_splits):
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "splits.py"), "--sum", str(three_splits), "--splits", "10"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "split-4: no verdict.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["check", "demo", "docs", "install", "smoke", "test"])
def test_a_script_runs_from_anywhere_and_stops_at_the_first_error(name):
    path = ROOT / "scripts" / name
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!")
    assert "set -eu" in text
    assert os.access(path, os.X_OK)
