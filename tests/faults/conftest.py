"""What the reliability suites share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from synthgen import training
from tests.faults import runs
from tests.faults.figures import FIGURES


@pytest.fixture
def tally(record_property) -> Callable[..., None]:
    """tally("kills", cases=3, bad=0): counts towards a figure of the line that a test run ends with; say it before asserting."""

    def count(name: str, cases: int = 1, bad: int = 0) -> None:
        assert name in FIGURES
        record_property("figure", [name, cases, bad])

    return count


@pytest.fixture
def many_checkpoints(monkeypatch) -> None:
    """A training of a few steps saves in between."""
    monkeypatch.setattr(training, "EPOCH", 2)
    monkeypatch.setattr(training, "fit", partial(training.fit, save_every_s=0.0))


@pytest.fixture(scope="session")
def calm(tmp_path_factory) -> runs.Calm:
    """A run of `runs.order()`."""
    return runs.Calm(tmp_path_factory.mktemp("calm"), lambda stage: runs.order())


@pytest.fixture(scope="session")
def small_calm(tmp_path_factory) -> runs.Calm:
    """A run of `runs.small`, for the training of a few steps alone: no stage after it could use it."""
    return runs.Calm(tmp_path_factory.mktemp("small"), runs.small)
