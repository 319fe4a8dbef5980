"""synthgen: synthetic image data that is proven to help.

Train small generators on a few labelled images, let through only the samples that pass a fidelity gate, export them
as shards, and measure on a locked test set what they add to the best that real data alone can do.

    import synthgen as sg

    run = sg.run("folder", {"data.path": "photos"})
    run.verdict, run.reasons, run.report
    kept = run.samples()  # a torch Dataset

Importing it takes milliseconds: what needs torch is loaded when it is first asked for. The functions are described in
`synthgen.api`, the errors in `synthgen.errors`.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.api import (
        Images,
        Replay,
        Run,
        audit,
        compare,
        drop,
        export,
        gain,
        gate,
        generate,
        open,
        replay,
        report,
        run,
        train,
        verify,
    )
    from synthgen.errors import CheckpointError, ConfigError, DataError, StorageError, SynthgenError, TrainingError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "Images", "Replay", "Run", "StorageError", "SynthgenError", "TrainingError",
    "__version__", "audit", "compare", "drop", "export", "gain", "gate", "generate", "open", "replay", "report", "run", "train",
    "verify",
]  # fmt: skip


_ALSO_PACKAGES = ("gate", "gain", "report")


class _Job(ModuleType):
    """A package that is a job too: `synthgen.gate` holds the gate's modules, `synthgen.gate(...)` is `api.gate(...)`."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return getattr(import_module("synthgen.api"), self.__name__.removeprefix("synthgen."))(*arguments, **settings)


class _Synthgen(ModuleType):
    """This package: those become callable when they are first imported, by whomever."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ALSO_PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _Job
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Synthgen

if not TYPE_CHECKING:  # else a misspelt name would be no error

    def __getattr__(name: str) -> Any:
        """The public names, imported when they are first used (PEP 562)."""
        if name in _ALSO_PACKAGES:
            return import_module(f"synthgen.{name}")
        if name in __all__:
            with warnings.catch_warnings():  # tqdm, which libraries import, asks in a notebook for widgets that we don't need
                warnings.filterwarnings("ignore", message="IProgress not found")
                return getattr(import_module("synthgen.errors" if name.endswith("Error") else "synthgen.api"), name)
        raise AttributeError(f"module 'synthgen' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
