"""The real command line, ended by SIGKILL and SIGTERM at random moments: the same command again ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthgen import cli, preemption
from tests.faults import runs
from tests.faults.figures import LONG

KILLS = 400 if LONG else 8
EVERYTHING = [name for names in runs.MADE.values() for name in names]
SETTINGS = runs.SMALLEST


class Warm:
    """`synthgen ARGUMENTS` in processes of their own that start at once; see `warm`."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def call(
        self, arguments: list[str], log: Path, how: signal.Signals | None = None, after: float = 0.0, once: Path | None = None
    ) -> int:
        """Exit code; negative where a signal ended it. It gets `how` after so many seconds, counted from when `once` is there."""
        asked: dict[str, Any] = {"arguments": arguments, "log": str(log)}
        if how is not None:
            asked |= {"signal": int(how), "after": after}
        if once is not None:
            asked["once"] = str(once)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def close(self) -> None:
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def wait_for(*paths: Path | None) -> None:
    """Returns when they are there, or after two minutes."""
    for _ in range(2400):
        if all(path is None or path.exists() for path in paths):
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    server = Warm()
    yield server
    server.close()


def command(out: Path) -> list[str]:
    return ["run", "digits-smoke", "--out", str(out), *SETTINGS]


@pytest.mark.timeout(7200)
def test_a_run_that_is_ended_at_any_moment_is_finished_by_the_same_command(warm, tmp_path, tally):
    started = time.monotonic()
    assert warm.call(command(tmp_path / "calm"), tmp_path / "calm.log") == 0, (tmp_path / "calm.log").read_text()
    length = time.monotonic() - started
    assert (tmp_path / "calm" / "shards").is_dir(), "there is something to export"
    expected = runs.contents(tmp_path / "calm", EVERYTHING)
    draws, wrong, ended, out, log = np.random.default_rng(0), [], 0, tmp_path / "run-0", tmp_path / "log"
    fresh = 0
    while ended < KILLS:
        how = signal.SIGTERM if draws.random() < 0.4 else signal.SIGKILL
        workers = ["workers=2"] if fresh % 4 == 1 else []  # finished by one
        code = warm.call([*command(out), *workers], log, how, float(draws.uniform(0, length)))
        if code in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):  # the last before it listens
            ended += 1
            if draws.random() < 0.6 and ended < KILLS:  # killed again and again on its way
                continue
        elif code != 0:
            wrong.append(f"{how.name}: exit code {code}")
        again = warm.call(command(out), log)
        found = runs.contents(out, EVERYTHING)
        checked = warm.call(["verify", str(out)], log)
        if again != 0 or checked != 0 or found != expected:
            differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            wrong.append(f"{how.name}: then exit codes {again} and {checked}, other than the calm run: {differing[:3]}")
        fresh += 1
        out = tmp_path / f"run-{fresh}"
    tally("kills", ended, len(wrong))
    tally("killed", fresh, len(wrong))
    assert not wrong, (wrong, log.read_text()[-2000:])


def test_sigterm_sigusr1_and_ctrl_c_save(warm, tmp_path, tally):
    """In the middle of a training that has saved nothing yet; what there is says that it is unfinished."""
    for name, expected, told in (
        ("SIGTERM", 143, "stopped by SIGTERM"),
        ("SIGUSR1", 143, "stopped by SIGUSR1"),
        ("SIGINT", 130, "interrupted"),
    ):
        out, log = tmp_path / name, tmp_path / f"{name}.log"
        long = [*command(out), "generators.diffusion.steps=100000", "looks.times=0"]
        code = warm.call(long, log, getattr(signal, name), 0.5, out / "train" / runs.MODEL / "resume.json")
        saved = list(out.glob("train/*/resume-*.ckpt"))
        said = log.read_text()
        checked = warm.call(["verify", str(out)], log)
        tally("kills", 1, not (code == expected and saved and told in said and checked == 5))
        assert code == expected, said
        assert saved
        assert f"{told}; run the same command again to go on" in said
        assert checked == 5
        assert "unfinished: run the same command again" in log.read_text()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_library_that_makes_an_error_of_its_own_of_a_signal_hides_nothing(name, code, monkeypatch, capsys):
    def app(standalone_mode: bool) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
        except BaseException:
            raise RuntimeError("the callback failed") from None

    before = {each: signal.getsignal(getattr(signal, each)) for each in preemption.NAMES}
    monkeypatch.setattr(cli, "app", app)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        preemption.forget()
        for each, handler in before.items():
            signal.signal(getattr(signal, each), handler)
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith("run the same command again to go on\n")


def test_workers_are_told_too(tmp_path, tally):
    """Two generators in two processes: both have saved when the command ends."""
    settings = ["models=[vae,diffusion]", "workers=2", "generators.vae.steps=100000", "generators.diffusion.steps=100000"]
    arguments = [*command(tmp_path / "run"), "looks.times=0", *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "synthgen", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    marks = [tmp_path / "run" / "train" / name / "resume.json" for name in ("vae", "diffusion")]
    wait_for(*marks)
    time.sleep(2.0)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=90)[1]
    saved = [bool(list(mark.parent.glob("resume-*.ckpt"))) for mark in marks]
    tally("kills", 1, not (process.returncode == 143 and all(saved)))
    assert process.returncode == 143, said
    assert saved == [True, True], said
    assert "Traceback" not in said
