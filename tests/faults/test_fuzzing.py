"""Files that nobody wrote on purpose, by the thousand: each is read, or refused with an error of ours. See `targets`.

The same examples every time. The long form tries twenty times as many; `scripts/fuzz` looks for others by coverage.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from synthgen.errors import SynthgenError
from tests.faults import targets
from tests.faults.figures import LONG

LONGEST_S = 5
"""Of CPU, on one example."""
MOST_GROWTH_BYTES = 400 * 2**20
TIMES = 20 if LONG else 1
EXAMPLES = {"report": 6, "recipe": 60, "overrides": 60, "checkpoint": 60}
"""Of a target whose name begins so; of the others 120. Those take longest."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no timers of CPU seconds there")


class Endless(BaseException):
    """Not caught by what catches everything."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, targets.Target]:
    return targets.build(tmp_path_factory.mktemp("fuzzing"))


def trouble(target: targets.Target, data: bytes) -> str:
    """What goes wrong with an example that isn't an error of ours; "" if nothing does."""

    def endless(*_: object) -> None:
        raise Endless(f"not done after {LONGEST_S} s")

    before = signal.signal(signal.SIGVTALRM, endless)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_S)
    try:
        target.run(data)
    except SynthgenError as error:
        return "" if "\n" not in str(error) else f"a line break in {error!r}"
    except (Exception, Endless) as error:
        return f"{type(error).__name__}: {error} <- {data[:400]!r}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return ""


@pytest.mark.filterwarnings("ignore")  # of libraries, about damaged files
@pytest.mark.parametrize("name", targets.NAMES)
def test_only_errors_of_ours_come_out(name, built, tally):
    target = built[name]
    wrong = [found for data in (*target.seeds, *target.extremes) if (found := trouble(target, data))]
    tried = len(target.seeds) + len(target.extremes)
    number = TIMES * next((many for start, many in EXAMPLES.items() if name.startswith(start)), 120)
    rss = _peak_bytes()

    @settings(max_examples=number, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def attempt(rng: random.Random) -> None:
        nonlocal tried
        tried += 1
        if found := trouble(target, target.example(rng)):
            wrong.append(found)

    attempt()
    if _peak_bytes() - rss > MOST_GROWTH_BYTES:
        wrong.append(f"took {(_peak_bytes() - rss) / 2**20:.0f} MB")
    tally("fuzz", cases=tried, bad=len(wrong))
    assert not wrong


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_good_files_are_read(built):
    """Else nothing behind the first check would be reached; what is read comes out whole."""
    for name, target in built.items():
        for data in target.seeds:
            target.run(data)
        assert name in targets.NAMES


def test_an_error_of_another_kind_would_be_seen(monkeypatch):
    def broken(data: bytes) -> None:
        raise {b"a": ValueError, b"b": RecursionError, b"c": MemoryError}[data]("x")

    def endless(data: bytes) -> None:
        while True:
            with suppress(Exception):
                pass

    for data in (b"a", b"b", b"c"):
        assert trouble(targets.Target(broken, [data]), data)
    monkeypatch.setattr("tests.faults.test_fuzzing.LONGEST_S", 0.1)
    assert "Endless" in trouble(targets.Target(endless, [b""]), b"")
