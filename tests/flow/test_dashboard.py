"""A whole run on each dashboard, through the command line: what is there under which name, and no stage the wiser."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synthgen import logs, storage
from tests.contract.test_tracking import inspect, records
from tests.contract.test_tracking_sweeps import SUMMARY

# enough steps and an easy gate, so that there is something to export
EASY = [
    "models=[diffusion]",
    "generators.diffusion.steps=150",
    "looks.times=3",
    "looks.num=60",
    "features.steps=20",
    "features.defect_steps=10",
    "classifier.steps=20",
    "gate.planted=5",
    "gate.false_rejection=0.4",
    "generate.num=150",
    "gain.arms=[real_aug,synthetic_gated]",
    "workers=1",
]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "synthgen", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "120"}
    )


def synthgen(*arguments: object) -> str:
    """What the command said on standard error."""
    process = start(*arguments)
    out, said = process.communicate(timeout=280)
    assert process.returncode == 0, out + said
    return said


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with CSV logs that was killed while its generator was trained, and taken up again."""
    out = tmp_path_factory.mktemp("dashboard") / "run"
    process = start("run", "digits-smoke", "--out", out, *EASY, "tracking=csv")
    metrics = out / logs.FOLDER / "train" / "diffusion" / "metrics.csv"
    while process.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 30):
        time.sleep(0.01)
    assert process.poll() is None, "killed while it trains"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert "tracking" in synthgen("run", "digits-smoke", "--out", out, *EASY, "tracking=csv")
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_losses_and_rates_are_logged_once_a_step(finished):
    about = storage.read_json(finished / "train/diffusion/train.json")
    found = rows(finished / "logs/train/diffusion/metrics.csv")
    assert [int(row["step"]) for row in found] == [step for step, _ in about["losses"]["loss"]] == list(range(1, 151))
    assert [float(row["loss"]) for row in found] == [loss for _, loss in about["losses"]["loss"]]
    assert [float(row["learning_rate"]) for row in found] == [rate for (rate,) in about["learning_rates"]]


def test_the_rest_is_logged_at_the_end(finished):
    tables = {path.relative_to(finished / "logs/run/tables").as_posix() for path in (finished / "logs/run/tables").rglob("*.csv")}
    assert {"gate/diffusion.csv", "gain/arms.csv", "gain/intervals.csv", "summary.csv"} <= tables
    gate = {row["metric"]: row for row in rows(finished / "logs/run/tables/gate/diffusion.csv")}
    assert float(gate["label_agreement"]["real_against_real"]) > 0
    images = sorted(path.name for path in (finished / "logs/run/images/looks/diffusion").iterdir())
    assert images == ["samples-step-000050.png", "samples-step-000100.png", "samples-step-000150.png"]
    looks = [row for row in rows(finished / "logs/run/metrics.csv") if row.get("looks/diffusion/fid")]
    assert [int(row["step"]) for row in looks] == [50, 100, 150]


def test_no_log_is_part_of_a_stage(finished):
    for manifest in finished.rglob(storage.STAGE_MANIFEST):
        about = json.loads(manifest.read_text())
        assert not [name for name in about["files"] if "logs" in name or "metrics.csv" in name]
        assert "tracking" not in json.dumps(about["config"])


def test_a_log_changes_no_byte(finished, tmp_path):
    for part in ("audit", "split", "features"):
        shutil.copytree(finished / part, tmp_path / "run" / part)
    shutil.copy(finished / "config.yaml", tmp_path / "run")
    synthgen("train", tmp_path / "run", "diffusion", "tracking=off", "--quiet")
    assert not (tmp_path / "run" / "logs").exists()
    for name in ("generator.safetensors", *(f"looks/step-{step:06d}.png" for step in (50, 100, 150))):
        here, there = (root / "train/diffusion" / name for root in (tmp_path / "run", finished))
        assert storage.sha256_file(here) == storage.sha256_file(there), name
    one, other = (storage.read_json(root / "train/diffusion/train.json") for root in (tmp_path / "run", finished))
    for name in ("losses", "learning_rates", "looks", "step"):
        assert one[name] == other[name]


def test_tensorboard_shows_the_finished_run(finished):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob(storage.STAGE_MANIFEST)}
    synthgen("run", "digits-smoke", "--out", finished, *EASY, "tracking=tensorboard", "--quiet")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob(storage.STAGE_MANIFEST)} == before
    found = reader.EventAccumulator(str(finished / "logs/run"), size_guidance={"images": 0})
    found.Reload()
    tags = found.Tags()
    assert [event.step for event in found.Images("looks/diffusion/samples")] == [50, 100, 150]
    assert "samples/diffusion" in tags["images"]
    assert {"looks/diffusion/fid", "gate/diffusion/label_agreement/real_against_real", *SUMMARY} <= set(tags["scalars"])
    assert "gate/diffusion/text_summary" in tags["tensors"]


@pytest.fixture(scope="module")
def offline(finished) -> Path:
    """The offline file of the finished run."""
    for _ in range(2):  # the second time it is there already
        said = synthgen("run", "digits-smoke", "--out", finished, *EASY, "tracking=offline", "group=mine")
    assert "wandb sync" in said
    (file,) = (finished / "wandb").glob("offline-run-*/*.wandb")
    return file


def test_a_dashboard_has_curves_grids_gate_and_gain(offline):
    (run,) = records(offline, "run")
    assert (run["project"], run["run_group"], run["display_name"]) == ("synthgen", "mine", "digits-smoke")
    history = [record["item"] for record in records(offline, "history")]

    def steps(name: str) -> list[int]:
        return [item["train/diffusion/step"] for item in history if name in item]

    assert steps("train/diffusion/loss") == steps("train/diffusion/learning_rate") == list(range(1, 151))
    assert steps("looks/diffusion/samples._type") == steps("looks/diffusion/fid") == [50, 100, 150]
    names = {name for item in history for name in item}
    assert {"gate/diffusion._type", "gain/arms._type", "gain/intervals._type", "gain/plot/arms._type"} <= names
    summary = json.loads(inspect(offline, "--summary"))
    assert "path" not in summary["config"]["data"]
    assert set(summary["summary"]) >= SUMMARY
    about = storage.read_json(offline.parents[2] / "verdict.json")
    assert summary["summary"]["verdict"] == about["verdict"]
    assert summary["summary"]["verdict_rank"] in (0, 1, 2)
    alerts = records(offline, "alert")
    assert len(alerts) == (about["verdict"] == "reject")


def test_the_shards_say_which_checkpoint_made_them(offline):
    out = offline.parents[2]
    found = {artifact["name"]: artifact for artifact in records(offline, "artifact")}
    model, shards = found["digits-smoke-diffusion"], found["digits-smoke-shards"]
    made, kept = json.loads(model["metadata"]), json.loads(shards["metadata"])
    sha256 = storage.sha256_file(out / "train/diffusion/generator.safetensors")
    assert made["checkpoint_sha256"] == kept["checkpoint_sha256"] == sha256
    assert made["split_digest"] == kept["split_digest"] == storage.folder_digest(out / "split")
    name, alias = kept["checkpoint"].split(":")
    assert name == model["name"]
    assert alias in model["aliases"]
    assert "MANIFEST.json" in [entry["path"] for entry in shards["manifest"]["contents"]]


def test_tensorboard_that_is_missing_is_refused_before_anything(tmp_path):
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'tensorboard' else find(name, *more)\n"
        f"sys.argv = ['synthgen', 'run', 'digits-smoke', 'tracking=tensorboard', '--out', {str(tmp_path / 'out')!r}]\n"
        "from synthgen import cli\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip install 'synthgen[tensorboard]'" in done.stderr
    assert not (tmp_path / "out").exists()
