"""Sweeps: the shipped files are what `wandb sweep` takes, and what its agent makes of them is a command of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from synthgen.config.load import CONFIGS, load, recipes
from tests.contract.test_tracking_server import KEY, server

wandb = pytest.importorskip("wandb")
FILES = sorted((CONFIGS / "sweeps").glob("*.yaml"))
SUMMARY = {"select/val_loss", "gain/difference"}
"""Fields that the summary of a finished run has, see tests/flow/test_dashboard.py."""


def command(file: Path, **values: object) -> list[str]:
    """What an agent of wandb runs for these values of the parameters."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    given = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    given["env"] = ["/usr/bin/env"]
    parts: list[str] = []
    for part in map(str, create_sweep_command(yaml.safe_load(file.read_text())["command"])):
        parts += given[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return parts


def some(parameter: dict) -> list[object]:
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def test_they_are_there():
    assert len(FILES) >= 2
    assert not {path.stem for path in FILES} & set(recipes())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_its_structure_is_a_sweeps(file):
    about = yaml.safe_load(file.read_text())
    assert set(about) <= {"program", "project", "name", "method", "metric", "run_cap", "parameters", "command"}
    assert about["method"] in ("bayes", "grid", "random")
    assert about["metric"]["name"] in SUMMARY
    assert about["metric"]["goal"] in ("minimize", "maximize")
    # a distribution that is searched needs its ends or its values, and a grid values alone
    for name, parameter in about["parameters"].items():
        assert set(parameter) in ({"values"}, {"distribution", "min", "max"}), name
        assert about["method"] != "grid" or "values" in parameter
    if about["metric"]["name"].startswith("gain/"):
        assert about["method"] == "grid", "settings aren't chosen by the test images"
    assert file.read_text().startswith(f"# wandb sweep configs/sweeps/{file.name}")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_its_command_is_one_of_ours(file, tmp_path):
    """Run by sh with a `synthgen` that only says what it is given; the settings are ones that a run takes."""
    said = tmp_path / "synthgen"
    said.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    said.chmod(0o755)
    parameters = yaml.safe_load(file.read_text())["parameters"]
    for end in (0, -1):
        values = {name: some(parameter)[end] for name, parameter in parameters.items()}
        agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command(file, **values), env={**os.environ, **agent}, capture_output=True, text=True, check=True)
        job, recipe, out, folder, *overrides = json.loads(done.stdout)
        assert (job, out, folder) == ("run", "--out", "outputs/sweeps/s1/r1")
        config = load(recipe, overrides)
        assert config.tracking == "online"
        for name, value in values.items():
            found = config
            for part in name.split("."):
                found = getattr(found, part)
            assert found == value


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_wandb_sweep_takes_it_as_it_is(file, tmp_path):
    with server("takes it") as (url, told):
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "HOME": str(tmp_path)}
        shell = [sys.executable, "-m", "wandb", "sweep", str(file)]
        done = subprocess.run(shell, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "wandb agent me/synthgen/sweep1" in done.stderr
    asked = [json.loads(body) for path, body in told if path == "/graphql"]
    (sent,) = [a["variables"] for a in asked if "UpsertSweep" in a["query"]]
    assert yaml.safe_load(sent["config"])["command"] == yaml.safe_load(file.read_text())["command"]
