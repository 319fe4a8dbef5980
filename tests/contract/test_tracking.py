"""Tracking: read back from wandb's real offline file with wandb's own tool; and nothing it does fails a job."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from synthgen import tracking
from synthgen.storage import write_json

KEY = "0123456789abcdef0123456789abcdef01234567"
CANARIES = ("SEKRIT", KEY, "hunter2", "somebody", "tell-tale-host", "tell-tale-user", "git@", "run.curve(")
JOB = """
import io, json, platform, socket, sys, getpass
socket.gethostname = platform.node = lambda: "tell-tale-host"
from pathlib import Path
import plotly.graph_objects as go
from PIL import Image
from synthgen import tracking
out = Path(sys.argv[1])
(out / "shards").mkdir(exist_ok=True)
(out / "shards" / "a.tar").write_bytes(b"0123")
file = io.BytesIO()
Image.new("L", (4, 4)).save(file, "PNG")
config = {"seed": 3, "data": {"path": "/home/somebody/images", "sizes": [8, 8]}}
with tracking.open_run("offline", "proj", "photos", "digits", out, config, {"a": 1}) as run:
    print(run.on)
    run.curve("train/vae/loss", "train/vae/step", [[1, 0.5], [2, 0.25]])
    run.curve("train/gan/loss", "train/gan/step", [[1, 2.5]])
    run.image("looks/vae/samples", file.getvalue(), "a grid", "train/vae/step", 1)
    run.image("looks/vae/samples", file.getvalue(), "a grid", "train/vae/step", 2)
    run.image("samples/vae", file.getvalue())
    run.table("gate/vae", ["metric", "value", "limit"], [["fid", 1.25, None], ["recall", 0.5, 0.8], ["kid", None, "a text"]])
    run.plot("gain/plot/arms", go.Figure())
    run.artifact("digits-shards", "dataset", {"a.tar": out / "shards/a.tar"}, {"checkpoint": "digits-vae:sha256-1"}, "sha256-2")
    run.summary({"verdict": "reject", "seconds/gain": 1.5})
    run.alert("digits: reject", "because")
run.summary({"late": 1.0})
print(run.on, run.where)
"""


def job(out: Path, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The job above in a process of its own, which has secrets and a telling command line."""
    secrets = {"WANDB_API_KEY": KEY, "DATABASE_PASSWORD": "hunter2", "USER": "tell-tale-user", "LOGNAME": "tell-tale-user"}
    environment = {**os.environ, **secrets, "HOME": str(home), "PYTHONPATH": str(Path(tracking.__file__).parents[1]), **more}
    command = [sys.executable, "-c", JOB, str(out), "--token=SEKRIT"]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> tuple[Path, Path, str]:
    """Folder, `.wandb` file and printed text of the job."""
    out, home = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("home")
    done = job(out, home)
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    return out, file, done.stdout + done.stderr


@cache
def inspect(file: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def records(file: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in inspect(file).splitlines()]
    return [record[kind] for record in found if record["type"] == kind]


def test_an_offline_run_is_read_back(offline):
    _, file, printed = offline
    assert printed.splitlines()[0] == "True"
    assert "`wandb sync " in printed
    history = [record["item"] for record in records(file, "history")]

    def curve(name: str, axis: str) -> list[tuple[float, float]]:
        return [(item[axis], item[name]) for item in history if name in item]

    assert curve("train/vae/loss", "train/vae/step") == [(1, 0.5), (2, 0.25)]
    assert curve("train/gan/loss", "train/gan/step") == [(1, 2.5)]
    assert curve("looks/vae/samples._type", "train/vae/step") == [(1, "image-file"), (2, "image-file")]
    axes = {metric["name"]: metric["step_metric"] for metric in records(file, "metric") if metric.get("step_metric")}
    assert axes["train/vae/loss"] == axes["looks/vae/samples"] == "train/vae/step"
    summary = json.loads(inspect(file, "--summary"))
    assert (summary["project"], summary["name"], summary["exit_code"]) == ("proj", "digits", 0)
    assert summary["config"] == {"seed": 3, "data": {"path": "images", "sizes": [8, 8]}}
    assert summary["summary"]["verdict"] == "reject"
    assert "late" not in summary["summary"]
    (run,) = records(file, "run")
    assert run["run_group"] == "photos"
    (alert,) = records(file, "alert")
    assert (alert["title"], alert["text"]) == ("digits: reject", "because")


def test_an_artifact_says_what_it_was_made_from(offline):
    _, file, _ = offline
    (shards,) = [artifact for artifact in records(file, "artifact") if artifact["name"] == "digits-shards"]
    assert shards["type"] == "dataset"
    assert set(shards["aliases"]) == {"latest", "sha256-2"}
    assert json.loads(shards["metadata"]) == {"checkpoint": "digits-vae:sha256-1"}
    assert [entry["path"] for entry in shards["manifest"]["contents"]] == ["a.tar"]


def test_tables_images_and_plots_stand_beside_it(offline):
    _, file, _ = offline
    (table,) = file.parent.glob("files/media/table/gate/*.table.json")
    assert json.loads(table.read_text()) == {
        "columns": ["metric", "value", "limit"],
        "data": [["fid", 1.25, None], ["recall", 0.5, 0.8], ["kid", None, "a text"]],
    }
    assert len(list(file.parent.glob("files/media/images/**/*.png"))) == 3
    assert len(list(file.parent.glob("files/media/plotly/gain/plot/arms_*.plotly.json"))) == 1


def test_no_secret_gets_in(offline):
    out, _, _ = offline
    contents = b"".join(path.read_bytes() for path in (out / "wandb").rglob("*") if path.is_file())
    assert b"digits" in contents
    host = socket.gethostname()
    for secret in (*CANARIES, *([host] if len(host) > 6 else [])):
        assert secret.encode() not in contents, secret


def test_of_the_machine_only_the_artifacts_places_are_known(offline):
    """`wandb sync` sends them from where they are; nothing else names a folder, and no setting does."""
    out, file, _ = offline
    (shards,) = [artifact for artifact in records(file, "artifact") if artifact["name"] == "digits-shards"]
    assert shards["manifest"]["contents"][0]["local_path"] == str(out / "shards" / "a.tar")
    for kind in ("run", "history", "summary", "alert", "config"):
        assert str(out) not in json.dumps(records(file, kind)), kind


def test_the_same_run_is_written_once(offline, tmp_path):
    out, file, _ = offline
    before = file.read_bytes()
    again = job(out, tmp_path)
    assert again.stdout.splitlines()[0] == "False"
    assert f"wandb sync {file.parent}" in again.stdout
    assert list((out / "wandb").glob("offline-run-*/*.wandb")) == [file]
    assert file.read_bytes() == before


def test_in_a_sweep_the_agent_names_the_run(tmp_path):
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\ngenerators.diffusion.lr: {value: 0.002}\n")
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_PROJECT": "theirs"}
    job(tmp_path, tmp_path, **agent, WANDB_SWEEP_PARAM_PATH=str(tmp_path / "parameters.yaml"))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    (run,) = records(file, "run")
    assert (run["sweep_id"], run["run_id"], run["project"]) == ("sweep1", "run1", "theirs")
    assert "display_name" not in run
    assert json.loads(inspect(file, "--summary"))["config"]["generators.diffusion.lr"] == 0.002


def test_off_writes_nothing_and_does_not_import_wandb(tmp_path):
    job = (
        "import sys\nfrom pathlib import Path\nfrom synthgen import tracking\n"
        f"with tracking.open_run('off', 'p', 'g', 'n', Path({str(tmp_path / 'x')!r}), {{}}) as run:\n"
        "    run.curve('x', 'step', [(1, 1.0)]); run.image('i', b''); run.table('t', ['a'], [[1]]); run.plot('p', None)\n"
        "    run.artifact('a', 'b', {}, {}); run.summary({'x': 1}); run.alert('a', 'b'); assert not run.on\n"
        "assert not {'wandb', 'torch'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", job], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


# Nothing fails a job


class Broken:
    """A wandb run whose every call fails."""

    def __getattr__(self, name):
        raise ConnectionError("the server\nis dead")


def test_a_failure_is_one_line_and_switches_off(caplog):
    tracker = tracking.WandB(Broken())
    with caplog.at_level(logging.WARNING, "synthgen"):
        tracker.summary({"x": 1.0})
        tracker.table("t", ["a"], [[1]])
        tracker.finish()
    assert not tracker.on
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases is off from here on, and the job goes on: summary: ConnectionError: the server is dead"
    ]


@pytest.mark.parametrize("mode", ["offline", "csv"])
def test_a_run_that_cannot_start_is_off(mode, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with tracking.open_run(mode, "p", "g", "n", tmp_path / "file", {}) as run:
        run.summary({"x": 1.0})
        assert not run.on
    assert len(caplog.records) == 1


def test_the_jobs_own_error_comes_through(tmp_path):
    with pytest.raises(KeyError), tracking.open_run("off", "p", "g", "n", tmp_path, {}):
        raise KeyError("of the job")


def test_a_note_that_is_no_json_object_counts_as_none(tmp_path, caplog):
    write_json(tmp_path / "wandb" / tracking.RECORDED, ["of another tool"])
    with tracking.open_run("offline", "p", "g", "n", tmp_path, {}, {"a": 1}) as run:
        assert run.on
