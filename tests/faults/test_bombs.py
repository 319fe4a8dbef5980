"""Small files that would fill the memory or never end: each is refused in moments, within a few hundred megabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = ("without an end", "settings of a run")
"""What is no bomb to a reader that takes care."""
LONGEST_S, MOST_MB = 5, 1_700
"""Of a case, and of the process: half of its address space beside what the libraries take."""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on a process there")
def test_no_file_fills_the_memory_or_takes_for_ever(tmp_path, tally):
    known = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**known, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.faults.bombs", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [
        case
        for case in cases
        for name, what, seconds, peak_mb in [case]
        if not what.startswith("read" if any(each in name for each in HARMLESS) else "refused: ")
        or seconds > LONGEST_S
        or peak_mb > MOST_MB
    ]
    tally("fuzz", cases=len(cases), bad=len(wrong) + (done.returncode != 0))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not wrong
    assert len(cases) > 25
