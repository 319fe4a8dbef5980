"""What may leave the machine: a page that is sent around doesn't tell where its run lay, and holds nothing that can't be seen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from synthgen.elsewhere import LOGIN, ON_THIS_MACHINE
from synthgen.report.wording import visible


class Portable:
    """Turns text and data of a run into what anybody may see.

    Args:
        folder: of the run, absolute; "" for none.
        config: its settings as YAML; folders that they name are shown by their last name alone.
    """

    def __init__(self, folder: str, config: str) -> None:
        named = (value for value in _strings(_settings(config)) if ON_THIS_MACHINE.match(value))
        places = {place for place in (folder, *named) if len(place) > 1}
        self._short = {place: "…/" + re.split(r"[\\/]", place.rstrip("\\/"))[-1] for place in places}

    def text(self, text: str) -> str:
        """The text without the run's folder, folders that the settings name, logins in addresses and unseen characters."""
        for place in sorted(self._short, key=lambda place: (-len(place), place)):
            text = text.replace(place, self._short[place])
        return visible(LOGIN.sub(r"\1…@", text))

    def data(self, value: Any) -> Any:
        """JSON types with every text as `text` has it; a figure that isn't finite becomes None."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.data(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.data(entry) for entry in value]
        if hasattr(value, "item"):  # numpy's
            value = value.item()
        return value if not isinstance(value, float) or math.isfinite(value) else None


def _settings(config: str) -> Any:
    try:
        return yaml.safe_load(config)
    except (yaml.YAMLError, ValueError):
        return config


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)
