"""Workers: the same results in the same order from any number of processes, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from synthgen.errors import DataError
from synthgen.types import Progress, Silent
from synthgen.workers import Pool

ROOT = Path(__file__).resolve().parents[2]


class Notes:
    """A `Progress` that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def start(self, task: str, total: int) -> None:
        self.told.append(("start", task, total))

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        self.told.append(("advance", task, steps, note))

    def finish(self, task: str, line: str) -> None:
        self.told.append(("finish", task, line))


def slow_then_fast(number: int, progress: Progress) -> int:
    time.sleep(0.3 if number == 0 else 0)
    return number * number


def telling(name: str, progress: Progress) -> None:
    progress.start(name, 3)
    progress.advance(name, 2, "loss 0.5")
    progress.finish(name, "done")


def ask_and_wait(path: Path, progress: Progress) -> bool:
    """Whether it was heard while it was at work."""
    progress.start(str(path), 1)
    end = time.monotonic() + 10
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return path.exists()


def gradients(seed: int, progress: Progress) -> tuple[int, bytes]:
    """A matrix product and a convolution, whose last bits depend on the number of threads."""
    images = torch.randn(16, 8, 24, 24, generator=torch.Generator().manual_seed(seed))
    out = torch.nn.functional.conv2d(images, images[:8, :, :5, :5])
    out = out.flatten(1) @ out.flatten(1).T
    return torch.get_num_threads(), out.numpy().tobytes()


def failing(number: int, progress: Progress) -> int:
    if number == 1:
        raise DataError(f"task {number}: no images")
    return number


def fail_or_linger(path: Path, progress: Progress) -> None:
    """Fails as soon as the other task is at work, which would go on for five minutes."""
    if path.name == "fail":
        while not (path.parent / "linger").exists():
            time.sleep(0.05)
        raise DataError("no images")
    path.write_text(str(os.getpid()))
    time.sleep(300)


@pytest.fixture(scope="module")
def pool():
    with Pool(2) as pool:
        yield pool


def test_results_come_in_the_order_of_the_tasks(pool):
    assert pool.map(slow_then_fast, range(8), Silent()) == [n * n for n in range(8)]
    assert pool.map(slow_then_fast, [], Silent()) == []


def test_two_workers_give_the_bytes_of_one(pool):
    torch.set_num_threads(2)
    with Pool(1) as alone:
        one = alone.map(gradients, range(4), Silent())
    assert torch.get_num_threads() == 2, "the caller's own threads come back"
    assert pool.map(gradients, range(4), Silent()) == one
    assert {threads for threads, _ in one} == {1}


def test_progress_arrives_from_every_worker(pool):
    for workers in (pool, Pool(1)):
        notes = Notes()
        workers.map(telling, ["a", "b", "c"], notes)
        for name in "abc":
            own = [told for told in notes.told if told[1] == name]
            assert own == [("start", name, 3), ("advance", name, 2, "loss 0.5"), ("finish", name, "done")]


def test_progress_arrives_while_the_task_runs(pool, tmp_path):
    class Answer(Notes):
        def start(self, task: str, total: int) -> None:
            Path(task).touch()

    assert pool.map(ask_and_wait, [tmp_path / "a", tmp_path / "b"], Answer()) == [True, True]


def test_an_error_keeps_its_type_and_the_pool_goes_on(pool):
    for workers in (pool, Pool(1)):
        with pytest.raises(DataError, match="task 1: no images"):
            workers.map(failing, range(4), Silent())
    assert pool.map(failing, [0, 2], Silent()) == [0, 2]


def test_no_number_of_workers_is_one_a_core_that_we_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert Pool(0).workers == 3


def test_an_error_ends_the_tasks_that_still_run(tmp_path):
    """They'd write into a folder whose lock the caller is about to give up."""
    started = time.monotonic()
    with pytest.raises(DataError, match="no images"), Pool(2) as pool:
        pool.map(fail_or_linger, [tmp_path / "linger", tmp_path / "fail"], Silent())
    assert time.monotonic() - started < 150
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "linger").read_text()), 0)


def in_group(group: int) -> set[int]:
    """Processes of a group that run (a zombie is only waiting to be counted)."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the processes left over")
def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_workers import Pool, Silent, fail_or_linger\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        pool.map(fail_or_linger, [Path(sys.argv[2]) / n for n in ('linger', 'too')], Silent())\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not all((tmp_path / name).exists() for name in ("linger", "too")):
            assert parent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(in_group(parent.pid)) >= 3
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 5
        while in_group(parent.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert in_group(parent.pid) == set()
    finally:
        if in_group(parent.pid):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
