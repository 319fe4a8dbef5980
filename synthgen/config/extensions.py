"""Generators from outside: an installed distribution names its class under the entry-point group `synthgen.generators`.

Names are read from the distributions' metadata; code is imported when one of them is asked for, not before. Nothing else
than an installed entry point is ever imported, whatever a config or a checkpoint says. Everything here scans the
metadata of all distributions (about 20 ms), so what knows a built-in name doesn't come here.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from synthgen.config.generators import GeneratorConfig, GeneratorsConfig
from synthgen.errors import ConfigError, did_you_mean

GROUP = "synthgen.generators"
BUILT_IN = tuple(GeneratorsConfig.model_fields)
RESERVED = ("features", "synthetic", "real")
"""Names that stand for something else in a run's folders and tables."""


def installed() -> tuple[str, ...]:
    """Names of the generators that installed distributions bring, sorted; imports none of them."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def known() -> tuple[str, ...]:
    """Names of all generators: the built-in ones first."""
    return (*BUILT_IN, *(name for name in installed() if name not in BUILT_IN))


def class_of(name: str) -> type[Any]:
    """The class that a distribution registered under a name, its `kind` and its `Config` checked.

    Raises:
        ConfigError: none has this name, or two have; it can't be imported, or isn't what a generator must be.
    """
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        names = known()
        raise ConfigError(f"{name!r}: no such generator{did_you_mean(name, names)}; known: {', '.join(names)}")
    owners = [_owner(point) for point in points]
    if name in BUILT_IN:
        raise ConfigError(f"{owners[0]}: registers a generator {name!r}, which is built in; it must take another name")
    if len(points) > 1:
        raise ConfigError(f"{name!r}: {' and '.join(owners)} both register a generator of this name; uninstall one of them")
    try:
        model = points[0].load()
    except Exception as error:  # somebody's code: it may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"{owners[0]}: its generator {name!r} ({points[0].value}) can't be imported: {why}; mend or uninstall it"
        ) from error
    wrong = fault(model, name)
    if wrong:
        raise ConfigError(f"{owners[0]}: its generator {name!r} ({points[0].value}) {wrong}; mend or uninstall it")
    found: type[Any] = model
    return found


def config_of(name: str) -> type[GeneratorConfig]:
    """The class of an installed generator's settings.

    Raises:
        ConfigError: as `class_of`.
    """
    config: type[GeneratorConfig] = class_of(name).Config
    return config


def fault(model: Any, name: str) -> str | None:
    """What keeps a class from being the generator `name`, as the end of a sentence; None if nothing does."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "has a name that isn't lower-case letters, digits and _"
    if name in RESERVED or (name not in BUILT_IN and hasattr(GeneratorsConfig, name)):
        return "has a name that is taken by something else; it must take another"
    if not isinstance(model, type):
        return f"is no class but a {type(model).__name__}"
    if getattr(model, "kind", None) != name:
        return f"calls itself kind={getattr(model, 'kind', None)!r}; the two must be the same"
    config = getattr(model, "Config", None)
    if not (isinstance(config, type) and issubclass(config, GeneratorConfig)):
        return "has no Config that is a subclass of synthgen.config.generators.GeneratorConfig"
    if "kind" not in config.model_fields or config.model_fields["kind"].default != name:
        return f"has a Config without `kind: Literal[{name!r}] = {name!r}`, which its checkpoints are read by"
    if config.model_config.get("extra") != "forbid" or not config.model_config.get("frozen"):
        return "has a Config that isn't frozen, or accepts settings that it doesn't know"
    try:
        config()
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        return f"has a Config that isn't complete without {where}; every setting needs a valid default"
    return None


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"
