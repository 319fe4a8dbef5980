"""A training stopped at any step, by a scheduler's signal or by kill -9, ends as the one that nobody stopped, bit for bit."""

from __future__ import annotations

import copy
import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen import checkpoints, logs, models, preemption, training
from synthgen.choice import Finding
from synthgen.errors import TrainingError
from synthgen.types import Silent
from tests.faults.disk import Killed, Layer
from tests.faults.figures import short_or_long

STEPS = 12
KINDS = ("vae", "gan", "diffusion")


@pytest.fixture(autouse=True)
def _our_signals(monkeypatch):
    """Signals do what the command line lets them do, in this test alone."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in preemption.NAMES}
    preemption.listen()
    monkeypatch.setattr(training, "EPOCH", 5)  # steps of an epoch, which a stop cuts short
    yield
    preemption.forget()
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


class Stopper(Silent):
    """Sends this process a signal when a step is done."""

    def __init__(self, step: int, name: str) -> None:
        self.left, self.name = step, name

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, self.name))


def _look(module: Any, step: int) -> Finding:
    """Something that depends on the weights alone, and is best in the middle."""
    weights = float(sum(p.detach().double().abs().sum() for p in module.parameters()))
    return Finding(step, {"weights": weights, "recall": 0.5}, abs(step - 8), np.arange(5.0))


def fit(tiny, toy, toy_spec, kind: str, folder: Path, progress: Any, save_every_s: float = 1e9) -> tuple[Any, training.Fit]:
    """Trains the tiny network of a kind for `STEPS` steps."""
    config = tiny.generators.of(kind).model_copy(update={"steps": STEPS})
    module = models.build(config, toy_spec, tiny.augment, seed=0)
    looks = training.Looks(_look, (4, 8, STEPS), picture=lambda: b"a picture")
    with preemption.held():
        done = training.fit(
            module, [(toy, 8)], steps=STEPS, seed=0, task=kind, progress=progress, folder=folder, save_every_s=save_every_s,
            looks=looks, log=logs.of_training("csv", folder / "run", kind),
        )  # fmt: skip
    return module, done


def state(module: Any, done: training.Fit, folder: Path) -> dict[str, Any]:
    """Everything that a training leaves behind: weights, averages, optimisers, counters, looks, curves, logs."""
    optimisers = [each.state_dict() for each in module.trainer.optimizers]
    return {
        "weights": copy.deepcopy(dict(module.state_dict())),
        "optimisers": optimisers,
        "counters": {name: value for name, value in vars(module).items() if isinstance(value, int | float | str | bool)},
        "curve": (done.losses, done.rates, done.step, done.kept, done.stopped),
        "looks": [(look.step, look.values, look.score) for look in done.looks],
        "pictures": done.pictures,
        "log": next(folder.rglob("metrics.csv")).read_text(),
    }


def different(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two nests of numbers and texts differ in a bit."""
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ two.keys()))}"]
        return [line for key in one for line in different(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            return [f"{where}: {len(one)} and {len(two)}"]
        return [line for i, pair in enumerate(zip(one, two, strict=True)) for line in different(*pair, f"{where}[{i}]")]
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return [] if torch.equal(one, two) else [where]
    return [] if one == two or (one != one and two != two) else [f"{where}: {one!r} and {two!r}"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Kind -> what its training leaves behind when nobody stops it."""
    return {}


def expected(whole, tiny, toy, toy_spec, kind: str, tmp_path: Path) -> Any:
    if kind not in whole:
        folder = tmp_path / "whole"
        whole[kind] = state(*fit(tiny, toy, toy_spec, kind, folder, Silent()), folder)
    return whole[kind]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_stopped_at_any_step_goes_on_to_the_same_end(tiny, toy, toy_spec, tmp_path, whole, kind, tally):
    end = expected(whole, tiny, toy, toy_spec, kind, tmp_path)
    wrong = []
    for step in range(1, STEPS + 1):
        folder, name = tmp_path / str(step), preemption.NAMES[step % 2]
        stopped = False
        try:
            fit(tiny, toy, toy_spec, kind, folder, Stopper(step, name))
        except preemption.Preempted as reason:
            stopped = str(reason) == name
        preemption.forget()
        preemption.listen()
        assert stopped, f"no stop at step {step}"
        if (step < STEPS) != bool(list(folder.glob("resume-*.ckpt"))):
            wrong.append(f"step {step}: not saved")
        found = state(*fit(tiny, toy, toy_spec, kind, folder, Silent()), folder)
        wrong += [f"step {step}: {line}" for line in different(end, found)]
    tally("resume", STEPS, len({line.partition(":")[0] for line in wrong}))
    assert not wrong, wrong


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_stopped_again_and_again_goes_on_to_the_same_end(tiny, toy, toy_spec, tmp_path, whole, kind, tally):
    end = expected(whole, tiny, toy, toy_spec, kind, tmp_path)
    folder, stops = tmp_path / "often", 0
    for _ in range(STEPS - 1):
        try:
            fit(tiny, toy, toy_spec, kind, folder, Stopper(1 if stops == 0 else stops + 1, "SIGTERM"))
        except preemption.Preempted:
            stops += 1
        preemption.forget()
        preemption.listen()
    found = different(end, state(*fit(tiny, toy, toy_spec, kind, folder, Silent()), folder))
    tally("resume", 1, bool(found))
    assert stops == STEPS - 1
    assert not found, found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["kill", "torn"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_killed_while_it_saves_goes_on_to_the_same_end(tiny, toy, toy_spec, tmp_path, whole, kind, how, tally):
    end = expected(whole, tiny, toy, toy_spec, kind, tmp_path)
    often = partial(fit, tiny, toy, toy_spec, kind, save_every_s=0.0)
    with pytest.MonkeyPatch.context() as patch:
        seen = Layer(tmp_path / "seen").mounted(patch)
        often(tmp_path / "seen", Silent())
    saves = [i for i, change in enumerate(seen.log) if "resume" in change.path or "resume" in change.to or change.path == "."]
    places, wrong = short_or_long(saves, 5), []
    for at in places:
        folder = tmp_path / f"{how}-{at}"
        with pytest.MonkeyPatch.context() as patch:
            layer = Layer(folder, at, how).mounted(patch)
            with pytest.raises(Killed):
                often(folder, Silent())
        assert layer.hit
        found = state(*often(folder, Silent()), folder)
        wrong += [f"change {at} ({seen.log[at].kind} {seen.log[at].path}): {line}" for line in different(end, found)]
    tally("resume", len(places), len({line.partition(":")[0] for line in wrong}))
    assert not wrong, wrong


def test_a_signal_outside_of_a_training_stops_at_once_and_inside_waits():
    with pytest.raises(preemption.Preempted, match="SIGUSR1"):
        os.kill(os.getpid(), signal.SIGUSR1)
    preemption.forget()
    noted = []

    def work() -> None:
        with preemption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            noted.append(preemption.asked())

    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        work()
    assert noted == ["SIGTERM"]
    with pytest.raises(preemption.Preempted), preemption.held(), preemption.released():
        raise AssertionError("a signal that came before has to be seen")


def test_no_handler_outside_of_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=preemption.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_network_of_a_look_that_is_kept_comes_back(tiny, toy, toy_spec, tmp_path, whole):
    """The looks choose step 8: what a stop before and after it leaves behind has its weights."""
    end = expected(whole, tiny, toy, toy_spec, "vae", tmp_path)
    assert end["curve"][2] == 8


@pytest.mark.parametrize("what", ["weight", "optimiser"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_never_replace_good_ones(tiny, toy, toy_spec, tmp_path, monkeypatch, kind, what, tally):
    """After step 7 a number is NaN; training ends with an error, and both checkpoints are those of before."""
    bad = []

    class Poison(Silent):
        left = 7

        def advance(self, task: str, steps: int = 1, note: str = "") -> None:
            self.left -= steps
            if self.left == 0:
                module = poisoned[0]
                optimiser = module.trainer.optimizers[0]
                target = next(module.parameters()) if what == "weight" else next(iter(optimiser.state.values()))["exp_avg"]
                with torch.no_grad():
                    target.view(-1)[0] = float("nan")

    built, poisoned = models.build, []
    monkeypatch.setattr(models, "build", lambda *given, **more: poisoned.append(built(*given, **more)) or poisoned[0])
    try:
        said = fit(tiny, toy, toy_spec, kind, tmp_path, Poison(), save_every_s=0.0)[1].stopped  # with the weights of a look
    except TrainingError as error:
        said = str(error)
    for path in tmp_path.glob("resume-*.ckpt"):
        found = checkpoints.AtomicCheckpointIO().load_checkpoint(path)
        bad += [f"{path.name}: {part}" for part in ("state_dict", "optimizer_states") if not checkpoints.finite(found[part])]
    tally("resume", 1, bool(bad) or not said)
    assert said
    assert not bad
