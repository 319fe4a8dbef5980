"""The figures of the reliability suites: each test says how many cases it tried and how many went wrong; one line shows all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

LONG = os.environ.get("SYNTHGEN_FAULTS") == "long"
"""`scripts/faults`: every case instead of a sample of them."""

FIGURES = {
    "io": "faults survived {good}/{cases}",
    "bytes": "bytes of finished stages lost {bad}/{cases}",
    "cuts": "power cuts survived {good}/{cases}",
    "power": "acknowledged files lost to power cuts {bad}/{cases}",
    "kills": "kills survived {good}/{cases}",
    "killed": "killed runs that ended as others {good}/{cases}",
    "damage": "silent corruptions {bad}/{cases}",
    "resume": "exact resumes {good}/{cases}",
    "determinism": "bit-exact {good}/{cases}",
    "disk": "disk troubles survived {good}/{cases}",
    "input": "bad inputs listed, told or refused {good}/{cases}",
    "gate": "gate closed {good}/{cases}",
    "tracebacks": "tracebacks {bad}",
    "code": "code executed {bad}/{cases}",
    "secrets": "secrets leaked {bad}/{cases}",
    "scripts": "scripts in report {bad}/{cases}",
    "fuzz": "crashes and untyped exceptions {bad}/{cases}",
    "wandb": "runs unaffected by W&B {good}/{cases}",
    "mutants": "planted defects found {good}/{cases}",
}
"""Name -> how it is shown, in this order."""


def short_or_long(cases: Sequence, short: int) -> list:
    """All cases in the long form; in the short one `short` of them, evenly spread."""
    if LONG or len(cases) <= short:
        return list(cases)
    return [cases[round(i * (len(cases) - 1) / max(1, short - 1))] for i in range(short)]


def line(counted: Iterable[tuple[str, int, int]]) -> str:
    """(figure, cases, bad) of every test -> one line; "" where there are none.

    >>> line([("kills", 3, 0), ("bytes", 1, 0), ("kills", 2, 1)])
    'reliability: bytes of finished stages lost 0/1 · kills survived 4/5'
    """
    totals: dict[str, list[int]] = {}
    for name, cases, bad in counted:
        total = totals.setdefault(name, [0, 0])
        total[0] += cases
        total[1] += bad
    shown = [
        text.format(cases=f"{cases:,}", bad=f"{bad:,}", good=f"{cases - bad:,}")
        for name, text in FIGURES.items()
        if name in totals
        for cases, bad in [totals[name]]
    ]
    return f"reliability: {' · '.join(shown)}" if shown else ""
