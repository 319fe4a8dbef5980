"""What a person sees: progress bars on a terminal, one line a stage elsewhere, and the verdict with its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDTH = 112
"""Columns of the tables where no terminal says otherwise; narrower terminals wrap."""

STYLE = {"use": "bold green", "reject": "bold red", "insufficient evidence": "bold yellow"}


def output() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)


class Screen:
    """A `types.Progress` that draws bars with time left on a terminal and prints a line when a task is over.

    Args:
        quiet: print nothing.
        console: where to; standard error if not given, so that --json keeps standard output to itself.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.started = time.monotonic()
        self.bars: Progress | None = None
        self.tasks: dict[str, Any] = {}
        if self.console.is_terminal and not quiet:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)

    def __enter__(self) -> Screen:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def start(self, task: str, total: int) -> None:
        if self.bars:
            self._remove(task)
            self.tasks[task] = self.bars.add_task(escape(task), total=total, note="")

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        if self.bars and task in self.tasks:
            self.bars.advance(self.tasks[task], steps)
            if note:
                self.bars.update(self.tasks[task], note=escape(note))

    def finish(self, task: str, line: str) -> None:
        self._remove(task)
        seconds = time.monotonic() - self.started
        self.console.print(f"{seconds:6.1f} s  {escape(f'{task:<19}')} {escape(line)}")

    def _remove(self, task: str) -> None:
        if self.bars and task in self.tasks:
            self.bars.remove_task(self.tasks.pop(task))


def show_verdict(about: Mapping[str, Any], folder: str, console: Console) -> None:
    """The tables of arms and gates, the verdict with its reasons, and where everything is."""
    if about["gate"]:
        console.print(gate_table(about["gate"]))
    if about["arms"]:
        console.print(arms_table(about["arms"]))
    style = STYLE[about["verdict"]]
    console.print(f"\nverdict: [{style}]{about['verdict']}[/{style}]")
    for reason in about["reasons"]:
        console.print(f"  - {escape(reason)}")
    shards = f"{folder}/{about['shards']}" if about["shards"] else "none"
    console.print(f"\nshards:  {escape(shards)}")
    console.print(f"report:  {escape(folder)}/{about['report']}")


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
        dropped = ", ".join(f"{reason} {count}" for reason, count in gate["dropped"].items())
        style = {"accept": "green", "reject": "red"}.get(gate["verdict"], "yellow")
        table.add_row(escape(name), str(gate["candidates"]), str(gate["kept"]), dropped, f"[{style}]{gate['verdict']}[/{style}]")
    return table


def arms_table(arms: Mapping[str, Any]) -> Table:
    """A row an arm: test accuracy with its interval over seeds, and the paired difference to the strongest real-only arm."""
    title = "Test accuracy by arm, in %, and minus the strongest real-only arm (95% intervals; p after Holm's correction)"
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
        table.add_row(escape(name), images, accuracy, difference, chance, worst, seconds, style=style)
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
        table.add_row(*(escape(cell) for cell in row.values()))
    console = output()
    console.print(table)
    quick, other = len(arms.QUICK), f"{arms.OTHER_GENERATOR}NAME"
    console.print(f"gain.study=quick runs the {quick} quick ones, gain.study=full all {len(rows)} and {other} for each other")
    console.print(
        escape("generator, gain.arms=[real_aug,synthetic_gated] those that are named. What lacks its needs is skipped.")
    )


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
        return "gain.transfer=FOLDER"
    if recipe.kind == "features":
        return "the gate's networks"
    if recipe.unlabelled:
        return "unlabelled images"
    if recipe.times is not None:
        return f"{recipe.times:g} kept a train image"
    return "samples that are copies" if recipe.synthetic == "with copies" else ""


def show_json(about: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(about, indent=2, ensure_ascii=False))


def show_gate(report: Any, folder: str) -> None:
    """A gate's metrics beside real-against-real, its verdict and its reasons."""
    console = output()
    table = Table(title="Fidelity gate", title_justify="left", title_style="bold")
    for name in ("metric", "candidates", "real against real", "excess (95% interval)", "limit", "verdict"):
        table.add_column(name, justify="left" if name in ("metric", "verdict") else "right")
    for m in report.metrics:
        if m.value is None:
            table.add_row(m.name, "refused", "", "", "", escape(m.note))
            continue
        limit = "shown only" if m.limit is None else f"{m.limit:+.3g}"
        style = {"accept": "green", "reject": "red"}.get(m.verdict, "yellow")
        verdict = "" if m.limit is None else f"[{style}]{m.verdict}[/{style}]"
        table.add_row(
            m.name, f"{m.value:.3g}", f"{m.reference:.3g}", f"{m.excess:+.3g} ({m.low:+.3g} to {m.high:+.3g})", limit, verdict
        )
    console.print(table)
    for kind in ("copy", "defect"):
        found = [f"{escape(p.name)} {p.found:.0%}" for p in report.planted if p.kind == kind]
        if found:
            console.print(f"planted {'copies' if kind == 'copy' else 'defects'} found: {', '.join(found)}")
    kept = [f"{escape(c.name)} {c.kept}/{c.candidates}" for c in report.classes]
    console.print(f"kept by class: {', '.join(kept[:20])}{', ...' if len(kept) > 20 else ''}")
    if report.selection:
        s = report.selection
        told = f"MMD {s.mmd:.3g} (at random {s.mmd_random:.3g}), recall {s.recall:.3g} ({s.recall_random:.3g})"
        console.print(f"budget:  {s.budget} of {s.offered} valid ones by {s.prefer}, {s.random_share:.0%} at random: {told}")
    style = STYLE.get(report.verdict, "bold green")
    console.print(
        f"\nverdict: [{style}]{report.verdict}[/{style}], {len(report.kept)} of {report.num_candidates} candidates kept"
    )
    for reason in report.reasons:
        console.print(f"  - {escape(reason)}")
    for notice in report.notices:
        console.print(f"  noticed: {escape(notice)}")
    console.print(f"gate:    {escape(folder)}/gate/gate.json")


def show_audit(report: Mapping[str, Any], folder: str) -> None:
    """Images by class and split, and what the audit noted."""
    console = output()
    counts = report["split_counts"]
    table = Table(title=f"{report['spec']['name']}: {report['num_images']:,} images", title_justify="left", title_style="bold")
    table.add_column("class")
    for role in counts:
        table.add_column(role, justify="right")
    table.add_column("all", justify="right")
    for name, total in report["class_counts"].items():
        table.add_row(
            escape(name),
            *(str(counts[role].get(name, "?" if "unlabelled" in counts[role] else 0)) for role in counts),
            str(total),
        )
    table.add_row("[bold]all", *(str(sum(counts[role].values())) for role in counts), str(sum(report["class_counts"].values())))
    console.print(table)
    for note in report["notes"]:
        console.print(f"  - {escape(note)}")
    console.print(f"audit:   {escape(folder)}/audit/report.json")
