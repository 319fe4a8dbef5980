"""What a job tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a job tells whoever watches: the screen, a test, nobody."""

    def start(self, task: str, total: int) -> None:
        """A task of `total` steps begins."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is a short figure such as the latest loss."""

    def finish(self, task: str, line: str) -> None:
        """The task is over; `line` says in one line what came out of it."""


@dataclass(frozen=True)
class Silent:
    """A `Progress` that nobody watches; all of them are equal."""

    def start(self, task: str, total: int) -> None:
        """Ignored."""

    def advance(self, task: str, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def finish(self, task: str, line: str) -> None:
        """Ignored."""
