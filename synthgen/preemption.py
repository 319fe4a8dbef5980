"""SIGTERM and SIGUSR1: a scheduler takes the machine back. What can be saved is saved at the next step; then exit code 143.

So is it with Ctrl-C (SIGINT, exit code 130); who presses it again doesn't wait for that.

Outside of `held` the signal raises `Preempted` at once: what stands on the disk is whole at any instant. Within, it is only
noted, and who runs asks `asked` where it can save. `check` raises what was noted meanwhile.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPT = "SIGINT"
NAMES = ("SIGTERM", "SIGUSR1", INTERRUPT)
"""SLURM's --signal and Kubernetes' grace period send one of the first two."""

_noted = ""
_held = 0
_listening = False


class Preempted(BaseException):
    """The process was asked to stop, and everything that can be taken up again is saved. Its text is the signal's name."""


def listen(held_back: bool = False) -> None:
    """From here on the signals do what this module says; only in a main thread, elsewhere nothing changes.

    Args:
        held_back: signals are only noted but where `released` says otherwise: a worker that waits for work has nothing to stop.
    """
    global _held, _listening
    _held += held_back
    _listening = threading.current_thread() is threading.main_thread()
    listen_again()


def listen_again() -> None:
    """Takes the signals back from a library that has put handlers of its own before ours; nothing if nobody listens."""
    if _listening and threading.current_thread() is threading.main_thread():
        for name in NAMES:
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), _on_signal)


def asked() -> str:
    """The name of the signal that came, or ""."""
    return _noted


def check() -> None:
    """Raises `Preempted` if a signal came while nobody could be interrupted."""
    if _noted:
        raise Preempted(_noted)


@contextmanager
def deferred() -> Iterator[None]:
    """A process that is started within never hears of these signals, which are for those that have something to save.

    This one hears them when the block has ended.
    """
    numbers = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def held() -> Iterator[None]:
    """A signal within is only noted; it is raised by the next `check`, or where the outermost `held` ends without an error."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if not _held:
        check()


@contextmanager
def released() -> Iterator[None]:
    """A signal within is raised at once, also where the caller is `held`."""
    global _held
    before, _held = _held, 0
    try:
        check()
        yield
    finally:
        _held = before


def forget() -> None:
    """As if no signal had come, and none is listened for: for a process that goes on, a test's or a notebook's."""
    global _noted, _listening
    _noted, _listening = "", False


def _on_signal(number: int, frame: Any) -> None:
    global _noted
    again = _noted
    _noted = signal.Signals(number).name
    if not _held or _noted == again == INTERRUPT:
        raise Preempted(_noted)
