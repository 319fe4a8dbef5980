"""What every job is given besides its folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen import elsewhere, storage, training
from synthgen.config.schema import RunConfig
from synthgen.types import Progress, Silent
from synthgen.workers import single_thread

CHECKPOINT = "generator.safetensors"
CANDIDATES = "candidates.parquet"


@dataclass(frozen=True)
class Order:
    """What every job is given besides its folders.

    Attributes:
        config: all settings.
        restart: make stages again whose settings, inputs or code changed, instead of refusing.
        progress: who watches.
    """

    config: RunConfig
    restart: bool = False
    progress: Progress = Silent()  # noqa: RUF009  (stateless)

    @property
    def device(self) -> str:
        return training.pick_device(self.config.device)

    @property
    def workers(self) -> int:
        """One process on a GPU, else what the settings say."""
        return 1 if self.device == "cuda" else self.config.workers

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as JSON types: what a stage's fingerprint covers.

        Where files lie on this machine is nobody's business, and no part of it: what is in them is among the stage's inputs.
        """
        settings: dict[str, Any] = elsewhere.without_places(self.config.model_dump(mode="json", include=set(names)))
        return settings

    @contextmanager
    def stage(self, folder: Path, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[storage.Stage]:
        with storage.stage(folder, name, config, inputs, self.restart) as work, single_thread():
            yield work
