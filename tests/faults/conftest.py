"""What the reliability suites share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.figures import FIGURES


@pytest.fixture
def tally(record_property) -> Callable[..., None]:
    """tally("kills", cases=3, bad=0): counts towards a figure of the line that a test run ends with; say it before asserting."""

    def count(name: str, cases: int = 1, bad: int = 0) -> None:
        assert name in FIGURES
        record_property("figure", [name, cases, bad])

    return count
