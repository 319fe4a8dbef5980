"""The scripts: every benchmark explains itself, has a quick check, and can leave its figures in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "scripts" / "bench").glob("*.py"))
PARTS = {"peers.py": "metrics.py", "generator_peers.py": "generators.py", "shard_peers.py": "shards.py"}
"""One measurement of a benchmark, in a process of its own -> the benchmark."""


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


@pytest.mark.parametrize("name", ["check", "demo", "docs", "install", "smoke", "test"])
def test_a_script_runs_from_anywhere_and_stops_at_the_first_error(name):
    path = ROOT / "scripts" / name
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!")
    assert "set -eu" in text
    assert os.access(path, os.X_OK)
