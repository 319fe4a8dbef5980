"""Every error that synthgen raises on purpose.

    SynthgenError                  exit code 1
    +-- ConfigError           2    a key, a value or an option is wrong
    +-- DataError             3    images, labels or a data folder are wrong, too few, or unreadable
    +-- CheckpointError       4    a checkpoint is missing, damaged, or belongs to another data set
    +-- StorageError          5    a run folder is locked, unfinished, changed, or can't be written
    +-- TrainingError         6    training diverged: a loss or a weight is no longer finite

A message is one line that says what was asked for, what was found and what to do. Exit codes 0 (the job ran, whatever
its verdict), 10 (`--exit-code`: the verdict is "reject") and 11 (`--exit-code`: "insufficient evidence") aren't errors.
130 is Ctrl-C, 143 SIGTERM or SIGUSR1 (`synthgen.preemption`), and 70 a defect of synthgen itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SynthgenError(Exception):
    """The base of all errors that a user can cause and mend."""

    exit_code = 1


class ConfigError(SynthgenError):
    """A key, a value or an option is wrong."""

    exit_code = 2


class DataError(SynthgenError):
    """Images, labels or a data folder are wrong, too few, or unreadable."""

    exit_code = 3


class CheckpointError(SynthgenError):
    """A checkpoint is missing, damaged, or belongs to another data set."""

    exit_code = 4


class StorageError(SynthgenError):
    """A run folder is locked, unfinished, changed, or can't be written."""

    exit_code = 5


class TrainingError(SynthgenError):
    """Training diverged: a loss or a weight is no longer finite."""

    exit_code = 6


EXIT_REJECT = 10
EXIT_INSUFFICIENT = 11
EXIT_DEFECT = 70
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest known names, or "" when none is near.

    >>> did_you_mean("max_fdi", ["max_fid", "min_recall"])
    "; did you mean 'max_fid'?"
    """
    near = get_close_matches(found, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
