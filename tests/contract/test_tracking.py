"""Tracking: read back from wandb's real offline file with wandb's own tool; and nothing it does fails a job."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synthgen import tracking
from synthgen.report.sprites import data_uri
from tests.contract.test_gain_report import gain_report

KEY = "0123456789abcdef0123456789abcdef01234567"
JOB = """
import base64, json, platform, socket, sys
socket.gethostname = platform.node = lambda: "tell-tale-host"
from pathlib import Path
import numpy as np
from synthgen import tracking
from synthgen.types import GainReport
out = Path(sys.argv[1])
(out / "shards").mkdir()
(out / "shards" / "a.tar").write_bytes(b"0123")
config = {"seed": 3, "data": {"path": "/home/somebody/images", "sizes": [8, 8]}}
with tracking.open_run("offline", "proj", "digits", out, config) as run:
    run.losses("vae", [[1, 0.5], [2, 0.25]])
    run.losses("gan", [[1, 2.5]])
    run.log({"fid": 1.5}, step=7)
    run.log({"fid": 1.25}, step=3)
    run.image("samples/vae", np.zeros((8, 16, 1), np.uint8), "a grid")
    run.image("samples/png", base64.b64decode(sys.argv[2]))
    run.table("gate/vae", ["metric", "value", "limit"], [["fid", 1.25, None], ["recall", 0.5, 0.8], ["kid", None, "a text"]])
    run.gain(GainReport.from_json(json.loads(Path(sys.argv[3]).read_text())))
    run.artifact("digits-shards", "dataset", out / "shards")
    run.summary({"verdict": "reject", "seconds/gain": 1.5})
    assert run.on
assert not run.on
run.log({"late": 1.0}, step=8)
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> tuple[Path, Path, str]:
    """Folder, `.wandb` file and printed text of a run in a process of its own, which has a secret and a telling command line."""
    out, home = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("home")
    png = data_uri(np.zeros((4, 4, 3), np.uint8)).split(",")[1]
    environment = {**os.environ, "HOME": str(home), "WANDB_API_KEY": KEY, "PYTHONPATH": str(Path(tracking.__file__).parents[1])}
    study = home / "gain.json"
    study.write_text(json.dumps(gain_report().to_json()))
    command = [sys.executable, "-c", JOB, str(out), png, str(study), "--token=SEKRIT"]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    return out, file, done.stdout + done.stderr


def inspect(file: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_an_offline_run_is_read_back(offline):
    _, file, printed = offline
    assert printed == ""
    records = [json.loads(line) for line in inspect(file).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]

    def curve(name: str, axis: str) -> list[tuple[float, float]]:
        return [(item[axis], item[name]) for item in history if name in item]

    assert curve("train/vae/loss", "train/vae/step") == [(1, 0.5), (2, 0.25)]
    assert curve("train/gan/loss", "train/gan/step") == [(1, 2.5)]
    assert curve("fid", "step") == [(7, 1.5), (3, 1.25)]
    assert not curve("late", "step")
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    (shards,) = [artifact for artifact in artifacts if artifact["name"] == "digits-shards"]
    assert shards["type"] == "dataset"
    assert [entry["path"] for entry in shards["manifest"]["contents"]] == ["a.tar"]
    summary = json.loads(inspect(file, "--summary"))
    assert (summary["project"], summary["name"], summary["exit_code"]) == ("proj", "digits", 0)
    assert summary["config"] == {"seed": 3, "data": {"path": "images", "sizes": [8, 8]}}
    assert summary["summary"]["verdict"] == "reject"


def test_tables_and_images_stand_beside_it(offline):
    _, file, _ = offline
    (table,) = file.parent.glob("files/media/table/gate/*.table.json")
    assert json.loads(table.read_text()) == {
        "columns": ["metric", "value", "limit"],
        "data": [["fid", 1.25, None], ["recall", 0.5, 0.8], ["kid", None, "a text"]],
    }
    assert len(list(file.parent.glob("files/media/images/**/*.png"))) == 2


def test_a_gain_study_is_a_curve_tables_and_a_summary(offline):
    _, file, _ = offline
    report = gain_report()
    records = [json.loads(line) for line in inspect(file).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = {h["gain/curve/num_real"]: h["gain/curve/accuracy"] for h in history if "gain/curve/accuracy" in h}
    assert list(curve) == [12, 25, 50, 100, 400]
    assert curve[100] == pytest.approx(0.91)
    found = {path.name.split("_")[0]: json.loads(path.read_text()) for path in file.parent.glob("files/media/table/gain/*.json")}
    sizes = {name: len(table["data"]) for name, table in found.items()}
    assert sizes == {"intervals": 13, "exchange": 2, "controls": 2, "classes": 3, "advice": 1, "skipped": 2}
    first = dict(zip(found["intervals"]["columns"], found["intervals"]["data"][0], strict=True))
    assert (first["arm"], first["p_holm"], first["decisive"]) == ("svm_pixels", 0.0625, False)
    assert sum(row[-1] for row in found["intervals"]["data"]) == len(report.decisive)
    summary = json.loads(inspect(file, "--summary"))["summary"]
    assert summary["gain/verdict"] == "insufficient evidence"
    assert summary["gain/difference"] == pytest.approx(4.0)


def test_no_secret_gets_in(offline):
    out, _, _ = offline
    contents = b"".join(path.read_bytes() for path in (out / "wandb").rglob("*") if path.is_file())
    assert b"digits" in contents
    host = socket.gethostname()
    for secret in ("SEKRIT", KEY, "somebody", "tell-tale-host", "git@", "run.losses(", *([host] if len(host) > 6 else [])):
        assert secret.encode() not in contents, secret


def test_off_writes_nothing_and_does_not_import_wandb(tmp_path):
    job = (
        "import sys\nfrom pathlib import Path\nfrom synthgen import tracking\n"
        "import json; from synthgen.types import GainReport\n"
        f"report = GainReport.from_json(json.loads({json.dumps(gain_report().to_json())!r}))\n"
        f"with tracking.open_run('off', 'p', 'n', Path({str(tmp_path / 'x')!r}), {{}}) as run:\n"
        "    run.log({'x': 1.0}, 1); run.losses('vae', [[1, 2]]); run.image('i', b''); run.table('t', ['a'], [[1]])\n"
        "    run.artifact('a', 'b', Path('.')); run.gain(report); run.summary({'x': 1}); assert not run.on\n"
        "assert not {'wandb', 'torch'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(tracking.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", job], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


class Broken:
    """A wandb run whose every call fails."""

    def __getattr__(self, name):
        raise ConnectionError("the server\nis dead")


def test_a_failure_is_one_line_and_switches_off(caplog):
    tracker = tracking.Tracker(Broken())
    with caplog.at_level(logging.WARNING, "synthgen"):
        tracker.log({"x": 1.0}, 1)
        tracker.table("t", ["a"], [[1]])
        tracker.finish()
    assert not tracker.on
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases is off from here on, and the job goes on: log: ConnectionError: the server is dead"
    ]


def test_a_run_that_cannot_start_is_off(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with tracking.open_run("offline", "p", "n", tmp_path / "file", {}) as run:
        run.log({"x": 1.0}, 1)
        assert not run.on
    assert len(caplog.records) == 1


def test_the_jobs_own_error_comes_through(tmp_path):
    with pytest.raises(KeyError), tracking.open_run("off", "p", "n", tmp_path, {}):
        raise KeyError("of the job")
