"""What may leave the machine: a page that is sent around doesn't tell where its run lay, and holds nothing that can't be seen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from synthgen.elsewhere import LOGIN, ON_THIS_MACHINE
from synthgen.report.wording import visible

MOST_CHARS = 2**18
"""Of a `config.yaml` that is read; ours have 7,000."""


class Portable:
    """Turns text and data of a run into what anybody may see.

    Args:
        folder: of the run, absolute; "" for none.
        config: its settings as YAML; folders that they name are shown by their last name alone.
    """

    def __init__(self, folder: str, config: str) -> None:
        places = {place for place in (folder, *_named_in(config)) if len(place) > 1}
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


def settings_in(config: str) -> Any:
    """The settings of a run out of its `config.yaml`.

    Raises:
        ValueError: not YAML, or of a kind that synthgen never writes: aliases, by which a few lines become any number.
    """
    if len(config) > MOST_CHARS:
        raise ValueError(f"config.yaml has {len(config):,} characters")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(config)):
            raise ValueError("config.yaml has aliases")
        return yaml.safe_load(config)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"config.yaml: {' '.join(str(error).split())[:200]}") from None


def _named_in(config: str) -> Iterator[str]:
    """Places on this machine that the settings name, however damaged their file is."""
    try:
        yield from (value for value in _strings(settings_in(config)) if ON_THIS_MACHINE.match(value))
    except (ValueError, TypeError):
        yield from re.findall(r"(?:^|[\s'\"\[,:])((?:/|~|[A-Za-z]:[\\/]|file:)[^\s'\",\]}]+)", config)


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
