"""What training writes while it runs: losses and learning rates, once a step, whatever it is killed and resumed."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from synthgen import logs, models, training
from synthgen.errors import ConfigError
from synthgen.logs import Log
from synthgen.models.base import to_bytes
from synthgen.models.gan import warm_cosine
from synthgen.types import Silent

STEPS = 12


class Killed(Exception):
    pass


class KillAt(Silent):
    def __init__(self, step: int) -> None:
        object.__setattr__(self, "left", step)

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        object.__setattr__(self, "left", self.left - steps)
        if self.left == 0:
            raise Killed


@pytest.fixture
def train(tiny, toy, toy_spec, monkeypatch):
    """Trains a generator of 12 steps, with checkpoints every 3."""
    monkeypatch.setattr(training, "EPOCH", 3)

    def run(name: str, folder: Path, log: Log | None = None, progress=None, looks=None):
        own = getattr(tiny.generators, name).model_copy(update={"steps": STEPS})
        module = models.build(own, toy_spec, tiny.augment, seed=0)
        settings = {"steps": STEPS, "seed": 0, "task": name, "progress": progress or Silent(), "save_every_s": 0.0}
        return module, training.fit(module, [(toy, 16)], folder=folder, log=log, looks=looks, **settings)

    return run


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_the_rate_is_that_of_the_step(train, tiny, tmp_path):
    _, fit = train("vae", tmp_path)
    factor = warm_cosine(STEPS)
    assert [rate for (rate,) in fit.rates] == pytest.approx([tiny.generators.vae.lr * factor(step) for step in range(STEPS)])
    assert len(fit.rates) == len(fit.losses)


def test_a_generator_with_two_optimisers_has_two_rates(train, tmp_path):
    _, fit = train("gan", tmp_path)
    assert {len(rates) for rates in fit.rates} == {2}
    assert list(logs.named(fit.rates[0])) == ["learning_rate", "learning_rate_2"]


@pytest.mark.parametrize("kind", logs.KINDS)
def test_a_log_changes_no_weight_and_a_resumed_training_writes_each_step_once(kind, train, tmp_path):
    whole, fit = train("gan", tmp_path / "whole")
    with pytest.raises(Killed):
        train("gan", tmp_path / "stage", Log(kind, tmp_path / "logs"), KillAt(10))
    assert (tmp_path / "logs").is_dir()
    resumed, again = train("gan", tmp_path / "stage", Log(kind, tmp_path / "logs"))
    assert to_bytes(resumed) == to_bytes(whole)
    assert (again.losses, again.rates) == (fit.losses, fit.rates)
    expected = [(step, *rates, loss) for (step, loss), rates in zip(fit.losses, fit.rates, strict=True)]
    if kind == "csv":
        found = [(row["step"], row["learning_rate"], row["learning_rate_2"], row["loss"]) for row in rows(tmp_path / "logs")]
    else:
        curves = events(tmp_path / "logs")
        assert set(curves) == {"loss", "learning_rate", "learning_rate_2"}
        both = zip(curves["learning_rate"], curves["learning_rate_2"], curves["loss"], strict=True)
        found = [(step, one, two, loss) for (step, one), (_, two), (_, loss) in both]
    assert [row[0] for row in found] == list(range(1, STEPS + 1))
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_it_can_be_read_while_training_runs(train, tmp_path):
    with pytest.raises(Killed):
        train("vae", tmp_path / "stage", Log("csv", tmp_path / "logs"), KillAt(10))
    assert [row["step"] for row in rows(tmp_path / "logs")] == list(range(1, 11))


def test_pictures_of_looks_survive_a_kill(train, tmp_path):
    from synthgen.choice import Finding

    looked: list[int] = []

    def look(module, step):
        looked.append(step)
        return Finding(step, {}, float(step))

    looks = training.Looks(look, (4, 8, 12), picture=lambda: b"look %d" % looked[-1])
    with pytest.raises(Killed):
        train("vae", tmp_path, progress=KillAt(11), looks=looks)
    _, fit = train("vae", tmp_path, looks=looks)
    assert fit.pictures == {4: b"look 4", 8: b"look 8", 12: b"look 12"}
    assert looked.count(4) == 1


def test_a_checkpoint_without_rates_is_taken_up(train, tmp_path):
    watch = training.Watch("x", 4, Silent(), None, 1.0, None)
    state = watch.state_dict() | {"losses": [[1, 0.5]], "done": 1}
    del state["rates"]
    watch.load_state_dict(state)
    assert watch.rates == [()]


def test_a_log_that_cannot_be_written_is_one_warning(train, tmp_path, caplog, monkeypatch):
    log = Log("csv", tmp_path / "logs")
    monkeypatch.setattr(log._logger, "log_metrics", lambda *_: (_ for _ in ()).throw(OSError("no space\nleft")))
    _, fit = train("vae", tmp_path / "stage", log)
    assert len(fit.losses) == STEPS
    assert not log.on
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{tmp_path / 'logs'}: no log from here on, and the job goes on: OSError: no space left"
    ]


def test_without_tensorboard_it_is_refused_before_anything(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'synthgen\[tensorboard\]'"):
        logs.check("tensorboard")
    with pytest.raises(ConfigError):
        logs.of_training("tensorboard", tmp_path, "vae")
    for mode in ("off", "offline", "online", "csv"):
        logs.check(mode)
    assert logs.of_training("off", tmp_path, "vae") is None
    assert list(tmp_path.iterdir()) == []
