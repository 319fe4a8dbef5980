"""The tutorial: it runs from its first cell to its last, and what is stored in it comes from such a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
STORED = json.loads(NOTEBOOK.read_text(encoding="utf-8"))

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=280, kernel_name="python3", coalesce_streams=True).execute()
nbformat.write(notebook, sys.argv[2])
"""


def cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def said(notebook: dict) -> list[str]:
    """What each cell of code prints and shows as text, without figures: seconds and the last digits differ by machine."""
    outputs = [
        "".join("".join(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in cell["outputs"])
        for cell in cells(notebook)
    ]
    return [re.sub(r"[-+]?\d[\d.]*", "0", text) for text in outputs]


def test_what_is_stored_was_run_in_order_and_names_no_machine():
    assert [cell["execution_count"] for cell in cells(STORED)] == list(range(1, len(cells(STORED)) + 1))
    kinds = {output["output_type"] for cell in cells(STORED) for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}, "no error"
    text = json.dumps(STORED)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work|usr|var)/|[A-Z]:\\\\\\\\", text)
    assert "stderr" not in text


@pytest.mark.slow
def test_it_runs_and_says_what_is_stored(tmp_path):
    """Half a minute of two cores."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(tmp_path / "done.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "done.ipynb").read_text(encoding="utf-8"))
    verdict = next(cell for cell in cells(found) if "".join(cell["source"]) == "run")
    page = "".join(verdict["outputs"][0]["data"]["text/html"])
    assert re.search(r"Verdict: <strong>(use|reject|insufficient evidence)</strong>", page)
    assert "synthetic_gated" in page
    assert (tmp_path / "outputs" / "tutorial" / "report" / "index.html").is_file()
    stages = cells(found)[2]["outputs"][0]["text"]
    assert [line.split()[2] for line in "".join(stages).splitlines()][-1] == "report"
    assert len(said(found)) == len(said(STORED))
    for now, then, cell in zip(said(found), said(STORED), cells(found), strict=True):
        if "sg.run(" not in "".join(cell["source"]):  # its stages end in any order, and its words follow the figures
            assert sorted({line.split(":")[0].split("  ")[0] for line in now.splitlines()}) == sorted(
                {line.split(":")[0].split("  ")[0] for line in then.splitlines()}
            )
