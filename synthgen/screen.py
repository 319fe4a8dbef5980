"""What a person sees: progress bars on a terminal, lines elsewhere, and the verdict with its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich import markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
)
from rich.table import Column, Table

from synthgen.report.wording import UNSEEN, visible

WIDTH = 112
"""Columns of the tables where no terminal says otherwise; narrower terminals wrap."""

EVERY_S = 30.0
"""Seconds between two lines of a task without a terminal."""

UNITS = {
    "train": "step",
    "generate": "image",
    "features": "network",
    "select": "network",
    "gain": "network",
    "pool": "round",
    "export": "image",
}
"""What a task counts, by its first word; the others are a few parts of unequal length, whose rate says nothing."""

STYLE = {"use": "bold green", "accept": "bold green", "reject": "bold red", "insufficient evidence": "bold yellow"}


def plain(text: Any) -> str:
    """A text that the terminal shows as it is: no markup, nothing that moves its cursor, turns it round or hides in it.

    Names of classes, files and folders come from anywhere.
    """
    return markup.escape(visible(str(text)).replace("\n", "\\n"))


def output() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)


class Screen:
    """A `types.Progress` that draws bars on a terminal, and prints a line when a task is over.

    A bar has the task, how far it is, its rate, the time left and a note such as the latest loss. Without a terminal a
    task that takes long prints the same as a line about every `EVERY_S` seconds.

    Args:
        quiet: print nothing.
        console: where to; standard error if not given, so that --json keeps standard output to itself.
        clock: seconds that only go up.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.clock, self.started = clock, clock()
        self.bars: Progress | None = None
        self.tasks: dict[str, Any] = {}
        self.running: dict[str, _Running] = {}
        if self.console.is_terminal and not quiet:
            self.bars = Progress(*_columns(self.console.width), console=self.console, transient=True, get_time=clock)

    def __enter__(self) -> Screen:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def start(self, task: str, total: int) -> None:
        self._remove(task)
        self.running[task] = _Running(task, total, self.clock())
        if self.bars:
            self.tasks[task] = self.bars.add_task(plain(task), total=total, note="", rate="", left="")

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        if task not in self.running:
            return
        running, now = self.running[task], self.clock()
        running.advance(steps, note, now)
        if self.bars:
            rate, left = running.rate(), running.left()
            self.bars.update(self.tasks[task], advance=steps, note=plain(running.note), rate=rate, left=left)
        elif now - running.said >= EVERY_S and running.done < running.total:
            running.said = now
            self._line(task, running.line())

    def finish(self, task: str, line: str) -> None:
        self._remove(task)
        self._line(task, line)

    def _line(self, task: str, line: str) -> None:
        self.console.print(f"{self.clock() - self.started:6.1f} s  {plain(f'{task:<19}')} {plain(line)}")

    def _remove(self, task: str) -> None:
        self.running.pop(task, None)
        if self.bars and task in self.tasks:
            self.bars.remove_task(self.tasks.pop(task))


@dataclass
class _Running:
    """A task that isn't over.

    Attributes:
        began, before: when the rate is measured from, and how much was done then: what a resumed task took up isn't its work.
        said: when it last printed a line.
    """

    task: str
    total: int
    began: float
    before: int = 0
    done: int = 0
    note: str = ""
    said: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.said = self.at = self.began

    def advance(self, steps: int, note: str, now: float) -> None:
        """Takes note of progress."""
        taken_up = self.done == 0 and steps > 1 and now - self.began < 1e-3 * steps
        self.done, self.note, self.at = self.done + steps, note or self.note, now
        if taken_up:  # faster than anything is done
            self.began, self.before = now, self.done

    def _unit(self) -> str:
        return UNITS.get(self.task.split()[0].rstrip(":"), "")

    def _per_s(self) -> float:
        done, seconds = self.done - self.before, self.at - self.began
        return done / seconds if done > 0 and seconds > 0 else 0.0

    def rate(self) -> str:
        """Items a second, or seconds an item where that says more; empty where it says nothing."""
        unit, per_s = self._unit(), self._per_s()
        if not unit or not per_s:
            return ""
        return (
            f"{per_s:,.0f} {unit}s/s" if per_s >= 10 else f"{per_s:.1f} {unit}s/s" if per_s >= 1 else f"{1 / per_s:.1f} s/{unit}"
        )

    def left(self) -> str:
        """Time left at this rate: 00:05, 1:20:00; empty where there is no rate."""
        per_s = self._per_s() if self._unit() else 0.0
        return str(timedelta(seconds=round((self.total - self.done) / per_s))).removeprefix("0:") if per_s else ""

    def line(self) -> str:
        """Everything in one line."""
        left = self.left()
        parts = [f"{100 * self.done / max(1, self.total):.0f}%", self.rate(), f"{left} left" if left else "", self.note]
        return ", ".join(part for part in parts if part)


def _columns(width: int) -> list[ProgressColumn]:
    """Those for which a terminal has room, the task and its time left before all."""
    task, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}", justify="right")
    rate = TextColumn("{task.fields[rate]}", justify="right")
    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=24))
    if width < 60:
        return [SpinnerColumn(), task, TaskProgressColumn(), left]
    if width < 90:
        return [
            SpinnerColumn(),
            task,
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            left,
            *([rate] if width >= 76 else []),
            note,
        ]
    bar = BarColumn(bar_width=20 if width < 110 else 30)
    return [SpinnerColumn(), task, bar, TaskProgressColumn(), MofNCompleteColumn(), left, rate, note]


def show_verdict(about: Mapping[str, Any], folder: str, console: Console) -> None:
    """The tables of arms and gates, the verdict with its reasons, and where everything is."""
    if about["gate"]:
        console.print(gate_table(about["gate"]))
    if about["arms"]:
        console.print(arms_table(about["arms"]))
    console.print(f"\nverdict: {_styled(about['verdict'])}")
    for reason in about["reasons"]:
        console.print(f"  - {plain(reason)}")
    shards = f"{folder}/{about['shards']}" if about["shards"] else "none"
    console.print(f"\nshards:  {plain(shards)}")
    console.print(f"report:  {plain(folder)}/{plain(about['report'])}")


def _styled(verdict: str) -> str:
    """A verdict in its colour."""
    style = STYLE.get(verdict, "bold")
    return f"[{style}]{plain(verdict)}[/{style}]"


def gate_table(gates: Mapping[str, Any]) -> Table:
    """A row a generator: kept, dropped by reason, verdict."""
    table = Table(title="Fidelity gate", title_justify="left", title_style="bold")
    for name, right in (
        ("generator", False),
        ("candidates", True),
        ("kept", True),
        ("dropped because", False),
        ("verdict", False),
    ):
        table.add_column(name, justify="right" if right else "left")
    for name, gate in gates.items():
        dropped = ", ".join(f"{plain(reason)} {count}" for reason, count in gate["dropped"].items())
        table.add_row(plain(name), str(gate["candidates"]), str(gate["kept"]), dropped, _styled(gate["verdict"]))
    return table


def arms_table(arms: Mapping[str, Any]) -> Table:
    """A row an arm: test accuracy and paired difference to the strongest real-only arm, with intervals over seeds and images."""
    title = (
        "Test accuracy by arm, in %, and minus the strongest real-only arm "
        "(95% intervals over seeds and test images; p after Holm's correction)"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("arm", "images", "accuracy", "difference", "p", "worst class", "s a seed"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name not in ("worst class", "s a seed"))
    for name, arm in arms.items():
        images = f"{arm['num_real']}+{arm['num_synthetic']}" if arm["num_synthetic"] else str(arm["num_real"])
        accuracy = f"{100 * arm['test_accuracy']:.2f} ({100 * arm['low']:.1f} to {100 * arm['high']:.1f})"
        difference = f"{arm['difference']:+.2f} ({arm['difference_low']:+.2f} to {arm['difference_high']:+.2f})"
        if arm["best_real"]:
            difference = "strongest on val"
        chance = "" if arm["p_holm"] is None else "<.001" if arm["p_holm"] < 0.001 else f"{arm['p_holm']:.3f}"
        worst, seconds = f"{100 * arm['worst_class']:.1f}", f"{arm['seconds'] / arm['seeds']:.1f}"
        style = "bold" if arm["best_real"] or arm["best_synthetic"] else ""
        table.add_row(plain(name), images, accuracy, difference, chance, worst, seconds, style=style)
    return table


def show_arms(as_json: bool) -> None:
    """Every arm of the gain study: what it is, and what it needs."""
    from synthgen.gain import arms

    rows = [
        {
            "arm": name,
            "meaning": arm.meaning,
            "side": "synthetic" if arm.synthetic else "real",
            "needs": arm_needs(name),
            "study": "quick" if name in arms.QUICK else "full",
        }
        for name, arm in arms.ARMS.items()
    ]
    if as_json:
        show_json(rows)
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in rows[0]:
        table.add_column(column, no_wrap=column == "arm")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row.values()))
    console = output()
    console.print(table)
    quick, other = len(arms.QUICK), f"{arms.OTHER_GENERATOR}NAME"
    console.print(f"gain.study=quick runs the {quick} quick ones, gain.study=full all {len(rows)} and {other} for each other")
    console.print(plain("generator, gain.arms=[real_aug,synthetic_gated] those that are named. What lacks its needs is skipped."))


def arm_needs(name: str) -> str:
    """What an arm asks for beside labelled and synthetic images; empty for nothing. The study skips it where that is missing."""
    from synthgen.gain import arms

    arm = arms.ARMS[name]
    if arm.role in ("oracle", "active"):
        return "gain.simulate=true"
    if arm.role == "searched":
        return "Optuna"
    if not arm.recipe:
        return ""
    recipe = arms.RECIPES[arm.recipe]
    if recipe.start == "transfer":
        more = {"": "", "pool": ", pool.train=true"}.get(recipe.unlabelled, ", unlabelled images")
        return f"gain.transfer=FOLDER{more}"
    if recipe.kind == "features":
        return "the gate's networks"
    if recipe.unlabelled:
        return "split.pool, pool.train=true" if recipe.unlabelled == "pool" else "unlabelled images"
    if recipe.times is not None:
        return f"{recipe.times:g} kept a train image"
    return "samples that are copies" if recipe.synthetic == "with copies" else ""


def show_json(about: Any) -> None:
    """JSON on standard output; what can't be seen is written as JSON escapes it."""
    text = json.dumps(about, indent=2, ensure_ascii=False)
    print(UNSEEN.sub(lambda found: json.dumps(found.group())[1:-1], text))


def show_gate(report: Any, folder: str) -> None:
    """A gate's metrics beside real-against-real, its verdict and its reasons."""
    console = output()
    table = Table(title="Fidelity gate", title_justify="left", title_style="bold")
    for name in ("metric", "candidates", "real against real", "excess (95% interval)", "limit", "verdict"):
        table.add_column(name, justify="left" if name in ("metric", "verdict") else "right")
    for m in report.metrics:
        if m.value is None:
            table.add_row(plain(m.name), "refused", "", "", "", plain(m.note))
            continue
        limit = "shown only" if m.limit is None else f"{m.limit:+.3g}"
        verdict = "" if m.limit is None else _styled(m.verdict)
        table.add_row(
            plain(m.name),
            f"{m.value:.3g}",
            f"{m.reference:.3g}",
            f"{m.excess:+.3g} ({m.low:+.3g} to {m.high:+.3g})",
            limit,
            verdict,
        )
    console.print(table)
    for kind in ("copy", "defect"):
        found = [f"{plain(p.name)} {p.found:.0%}" for p in report.planted if p.kind == kind]
        if found:
            console.print(f"planted {'copies' if kind == 'copy' else 'defects'} found: {', '.join(found)}")
    kept = [f"{plain(c.name)} {c.kept}/{c.candidates}" for c in report.classes]
    console.print(f"kept by class: {', '.join(kept[:20])}{', ...' if len(kept) > 20 else ''}")
    if report.selection:
        s = report.selection
        told = f"MMD {s.mmd:.3g} (at random {s.mmd_random:.3g}), recall {s.recall:.3g} ({s.recall_random:.3g})"
        console.print(
            f"budget:  {s.budget} of {s.offered} valid ones by {plain(s.prefer)}, {s.random_share:.0%} at random: {told}"
        )
    console.print(f"\nverdict: {_styled(report.verdict)}, {len(report.kept)} of {report.num_candidates} candidates kept")
    for reason in report.reasons:
        console.print(f"  - {plain(reason)}")
    for notice in report.notices:
        console.print(f"  noticed: {plain(notice)}")
    console.print(f"gate:    {plain(folder)}/gate/gate.json")


def show_audit(report: Mapping[str, Any], folder: str) -> None:
    """Images by class and split, and what the audit noted."""
    console = output()
    counts = report["split_counts"]
    table = Table(
        title=f"{plain(report['spec']['name'])}: {report['num_images']:,} images", title_justify="left", title_style="bold"
    )
    table.add_column("class")
    for role in counts:
        table.add_column(plain(role), justify="right")
    table.add_column("all", justify="right")
    for name, total in report["class_counts"].items():
        table.add_row(
            plain(name),
            *(str(counts[role].get(name, "?" if "unlabelled" in counts[role] else 0)) for role in counts),
            str(total),
        )
    table.add_row("[bold]all", *(str(sum(counts[role].values())) for role in counts), str(sum(report["class_counts"].values())))
    console.print(table)
    for note in report["notes"]:
        console.print(f"  - {plain(note)}")
    console.print(f"audit:   {plain(folder)}/audit/report.json")


def show_compare(found: Mapping[str, Any], page: str | None) -> None:
    """Runs side by side: a column a run, the settings that differ, and what to mind."""
    console = output()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", *found["columns"]):
        table.add_column(plain(name), overflow="fold")
    section = ""
    for row in found["rows"]:
        if row["section"] != section:
            section = row["section"]
            table.add_row(f"[bold]{plain(section)}")
        cells = [_styled(cell) if cell in STYLE else plain(cell) for cell in row["cells"]]
        table.add_row(f"  {plain(row['name'])}", *cells)
    if found["settings"]:
        table.add_row("[bold]settings that differ")
        for row in found["settings"]:
            values = ["" if value is None else plain(str(value)) for value in row["values"]]
            table.add_row(f"  {plain(row['key'])}", *values)
    console.print(table)
    for note in found["notes"]:
        console.print(f"  - {plain(note)}")
    if page:
        console.print(f"page:    {plain(page)}")
