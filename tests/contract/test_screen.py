"""The screen: bars where there is a terminal, a line about every half minute where there is none, and silence on request."""

from __future__ import annotations

import io
import json
import os
import re

import pytest
from rich.console import Console

from synthgen import screen
from synthgen.screen import Screen, gate_table
from synthgen.types import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(**more) -> tuple[Screen, io.StringIO, Clock]:
    """A screen without a terminal, what it prints, and its clock."""
    file, clock = io.StringIO(), Clock()
    return Screen(console=Console(file=file, soft_wrap=True, highlight=False, **more), clock=clock), file, clock


def terminal(width: int) -> tuple[Screen, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=width, height=20, color_system=None, soft_wrap=True, highlight=False)
    return Screen(console=console, clock=clock), file, clock


def drawn(watched: Screen, width: int) -> str:
    """The bars as they stand now."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(watched.bars.get_renderable())
    return file.getvalue()


def test_it_is_a_progress():
    assert isinstance(Screen(quiet=True), Progress)


# Without a terminal


def test_a_short_task_is_one_line():
    watched, file, clock = plain()
    with watched:
        watched.start("train vae", 100)
        for _ in range(100):
            clock.now += 0.1
            watched.advance("train vae", 1, "loss 0.5")
        watched.finish("train vae", "100 steps, last loss 0.500")
    assert file.getvalue() == "  10.0 s  train vae           100 steps, last loss 0.500\n"


def test_a_long_task_tells_how_far_it_is_about_every_half_minute():
    watched, file, clock = plain()
    with watched:
        watched.start("train diffusion", 1200)
        for step in range(12):
            clock.now += 10
            watched.advance("train diffusion", 100, f"loss {1 / (step + 1):.3f}")
        watched.finish("train diffusion", "done")
    assert file.getvalue().splitlines() == [
        "  30.0 s  train diffusion     25%, 10 steps/s, 01:30 left, loss 0.333",
        "  60.0 s  train diffusion     50%, 10 steps/s, 01:00 left, loss 0.167",
        "  90.0 s  train diffusion     75%, 10 steps/s, 00:30 left, loss 0.111",
        " 120.0 s  train diffusion     done",
    ]


def test_several_tasks_at_once_are_told_each():
    watched, file, clock = plain()
    for name in ("train vae", "train gan"):
        watched.start(name, 10)
    clock.now = 31
    watched.advance("train gan", 1)
    watched.advance("train vae", 5)
    assert [line.split()[3] for line in file.getvalue().splitlines()] == ["gan", "vae"]


def test_what_a_resumed_task_took_up_is_not_its_rate():
    watched, file, clock = plain()
    watched.start("train vae", 1000)
    watched.advance("train vae", 900)
    clock.now = 40
    watched.advance("train vae", 40, "loss 1")
    assert file.getvalue() == "  40.0 s  train vae           94%, 1.0 steps/s, 01:00 left, loss 1\n"


@pytest.mark.parametrize(
    ("task", "seconds", "said"),
    [
        ("generate gan", 0.5, "20 images/s"),
        ("generate gan", 5, "2.0 images/s"),
        ("gain", 20, "2.0 s/network"),
        ("gain: test", 20, "2.0 s/network"),
        ("gate vae", 20, ""),
    ],
)
def test_the_rate_has_the_unit_of_its_task(task, seconds, said):
    watched, _, clock = plain()
    watched.start(task, 1000)
    clock.now = seconds
    watched.advance(task, 10)
    assert watched.running[task].rate() == said


def test_nothing_is_said_of_a_task_that_nobody_has_started():
    watched, file, clock = plain()
    clock.now = 100
    watched.advance("x", 1)
    watched.start("y", 10)
    assert file.getvalue() == ""


def test_quiet_prints_nothing(capsys):
    with Screen(quiet=True) as watched:
        watched.start("x", 1)
        watched.advance("x")
        watched.finish("x", "done")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_standard_error_and_json_has_standard_output(capsys):
    with Screen() as watched:
        watched.finish("x", "done")
    screen.show_json({"verdict": "use"})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"verdict": "use"}
    assert "done" in said.err


# On a terminal


def test_a_bar_has_the_stage_rate_time_left_and_loss():
    watched, _, clock = terminal(112)
    with watched:
        watched.start("train diffusion", 1000)
        clock.now = 10
        watched.advance("train diffusion", 250, "loss 0.123")
        (line,) = drawn(watched, 112).splitlines()
    for part in ("train diffusion", "25%", "250/1000", "25 steps/s", "00:30", "loss 0.123"):
        assert part in line


@pytest.mark.parametrize("width", [20, 40, 59, 60, 75, 76, 80, 89, 90, 109, 110, 200])
def test_a_narrow_terminal_has_what_matters_most_in_a_line_a_task(width):
    watched, _, clock = terminal(width)
    tasks = {"train diffusion": (1000, "loss 0.123"), "generate vae": (500, ""), "gate gan": (4, "candidates done")}
    with watched:
        for task, (total, _) in tasks.items():
            watched.start(task, total)
        clock.now = 10
        for task, (total, note) in tasks.items():
            watched.advance(task, total // 4, note)
        lines = drawn(watched, width).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    for task, line in zip(tasks, lines, strict=True):
        if width >= 40:
            assert task in line
            assert "25%" in line
            assert bool(re.search(r"\d\d:\d\d", line)) == (task != "gate gan"), "its parts are of unequal length"
    assert ("loss 0.123" in lines[0]) == (width >= 60)
    assert ("25 steps/s" in lines[0]) == (width >= 76)
    assert ("250/1000" in lines[0]) == (width >= 90)


def test_names_and_notes_are_no_markup():
    watched, file, _ = terminal(100)
    with watched:
        watched.start("train [red]x", 10)
        watched.advance("train [red]x", 1, "[bold]")
        assert "[red]x" in drawn(watched, 100)
        assert "[bold]" in drawn(watched, 100)
        watched.finish("train [red]x", "[/nothing]")
    assert "[/nothing]" in file.getvalue()


def test_a_task_that_is_over_leaves_its_line_and_no_bar():
    watched, file, _ = terminal(100)
    with watched:
        watched.start("audit", 2)
        watched.finish("audit", "1,797 images")
        assert drawn(watched, 100).strip() == ""
    assert "1,797 images" in file.getvalue()


def test_no_color_is_kept(monkeypatch):
    gates = {"vae": {"candidates": 10, "kept": 5, "dropped": {"copy": 5}, "verdict": "reject"}}

    def shown() -> str:
        file = io.StringIO()
        Console(file=file, force_terminal=True, width=100, _environ=dict(os.environ)).print(gate_table(gates))
        return file.getvalue()

    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown())
