"""Recipe and overrides -> a frozen `RunConfig`. The only file that imports Hydra, which composes and is out of the way.

`_target_` and interpolations (`${...}`) are refused: a config names values, never code, and never the environment. A YAML
file is looked at before Hydra reads it: what it takes into itself, how deep it is, and what its aliases would grow to. That
it names a program, a TorchScript file, has to be said on the command line once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from synthgen.config.generators import GeneratorsConfig
from synthgen.config.schema import RunConfig
from synthgen.errors import ConfigError, did_you_mean

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
INSTALLED = "generators."
"""Where the sections of installed generators stand."""
MOST_BYTES, MOST_VALUES, MOST_DEPTH = 2**18, 10_000, 40
"""Of a recipe of somebody's own; ours have 2 kB, and 250 values 4 levels deep."""
OPTION = r"[A-Za-z0-9][A-Za-z0-9_-]*"
"""Name of a size, never a path."""


def recipes() -> dict[str, str]:
    """Shipped recipes: name -> the head line of its file."""
    return {path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in sorted(CONFIGS.glob("*.yaml"))}


def load(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a recipe (a shipped name or a YAML file of yours), with `key=value` overrides.

    Raises:
        ConfigError: no such recipe; an unknown key (with its nearest neighbours); a value of the wrong type or range; a file
            that names a program, where no override does.
    """
    folder, name = _find(recipe)
    for override in overrides:
        _check_override(override)
    if folder != CONFIGS:
        _check_file(folder / f"{name}.yaml", recipe)
    config = validate(_compose(folder, name, overrides), where=recipe)
    if folder != CONFIGS:
        _check_program(config, overrides, recipe)
    return config


def validate(values: Mapping[str, Any], where: str) -> RunConfig:
    """Checks plain values against the schema.

    Raises:
        ConfigError: every fault in one line each, with its key.
    """
    for key, value in _leaves(values):
        if key.rsplit(".", 1)[-1] == "_target_" or (isinstance(value, str) and "${" in value):
            raise ConfigError(
                f"{where}: {key}={value!r}: a config holds plain values, no _target_ and no ${{...}}; write the value itself"
            )
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def known_keys() -> dict[str, tuple[str, Any, str]]:
    """Every key -> (type, default, meaning), nested keys with dots, in the schema's order; installed generators' last.

    Imports the installed generators. One that can't be imported has a single row that says why.
    """
    from synthgen.config import extensions

    keys = _keys()
    for name in extensions.installed():
        try:
            keys |= _keys_of_installed(name)
        except ConfigError as error:
            keys[f"{INSTALLED}{name}"] = ("unusable", None, str(error))
    return keys


def _keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, tuple[str, Any, str]]:
    """The keys of a section and the sections in it."""
    keys: dict[str, tuple[str, Any, str]] = {}
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys |= _keys(section, f"{prefix}{name}.")
        else:
            constraints = [str(m).split("(")[-1].rstrip(")") for m in info.metadata if "(" in str(m)]
            kind = _type_name(info.annotation) + (f" [{', '.join(constraints)}]" if constraints else "")
            keys[prefix + name] = (kind, info.get_default(call_default_factory=True), info.description or "")
    return keys


def _keys_of_installed(name: str) -> dict[str, tuple[str, Any, str]]:
    from synthgen.config import extensions

    return _keys(extensions.config_of(name), f"{INSTALLED}{name}.")


def _keys_near(key: str) -> dict[str, Any]:
    """The keys that may have been meant: an installed generator's only where its name stands, since that imports it."""
    from synthgen.config import extensions

    names = extensions.installed() if key.startswith(INSTALLED) else ()
    named = key.removeprefix(INSTALLED).split(".")[0]
    return _keys() | {f"{INSTALLED}{name}": None for name in names} | (_keys_of_installed(named) if named in names else {})


def _for_hydra(override: str) -> str:
    """Hydra only knows the built-in generators; of another one, checked by now, a setting is one that it has to add."""
    named = re.match(r"generators(?:\.([^.=]+))?", override)
    return f"++{override}" if named and named.group(1) not in GeneratorsConfig.model_fields else override


def _studies(overrides: Sequence[str]) -> list[str]:
    """`gain=full` stands for `gain.study=full` with that study's own arms, whatever arms the recipe lists."""
    written = []
    for override in overrides:
        if re.fullmatch(r"gain=[a-z]+", override):
            written.append(override.replace("gain=", "gain.study="))
            written += [] if any(other.startswith("gain.arms=") for other in overrides) else ["gain.arms=null"]
        else:
            written.append(override)
    return written


def _find(recipe: str) -> tuple[Path, str]:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).resolve()
        if not path.is_file():
            raise ConfigError(f"{recipe}: no such file")
        if path.suffix == ".yml":
            raise ConfigError(f"{recipe}: a recipe's name ends with .yaml; rename it to {path.stem}.yaml")
        return path.parent, path.stem
    known = recipes()
    if recipe not in known:
        raise ConfigError(
            f"{recipe!r}: no such recipe{did_you_mean(recipe, known)}; known: {', '.join(known)}; or give a YAML file"
        )
    return CONFIGS, recipe


def _check_program(config: RunConfig, overrides: Sequence[str], where: str) -> None:
    """Somebody's file may name any file on this machine, and a TorchScript file runs with the rights of this process."""
    features = config.features
    program = features.extractor == "torchscript" or (features.extractor == "inception" and features.sha256 is not None)
    if program and not any(re.match(r"features(\.extractor|\.path|\.sha256)?=", override) for override in overrides):
        raise ConfigError(
            f"{where}: features.path={features.path!r} is a program (TorchScript), which a file can't start by itself; if you "
            f"trust it, say so: features.extractor={features.extractor}"
        )


def _check_file(path: Path, where: str, seen: frozenset[Path] = frozenset()) -> None:
    """Refuses a YAML file that would grow beyond all bounds, or takes up more than the schema and a size."""
    import yaml

    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: not readable ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.stem}: {error}; a recipe is UTF-8 text") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{where}: {len(data):,} bytes, a recipe has at most {MOST_BYTES:,}")
    try:
        _check_growth(text, where)
        top = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError):
        return  # Hydra reads it the same way, and says what is wrong
    if top is None:
        raise ConfigError(f"{where}: holds no settings; write `defaults: [schema, _self_]` at its top and what differs below")
    top = top if isinstance(top, Mapping) else {}
    if "hydra" in top:
        raise ConfigError(f"{where}: hydra: no such setting; take it out")
    entries = top.get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        neighbour = path.parent / f"{_taken_up(entry, where)}.yaml"
        if neighbour not in seen and neighbour.is_file():
            _check_file(neighbour, f"{where}: {neighbour.stem}", seen | {path, neighbour})


def _taken_up(entry: Any, where: str) -> str:
    """Name of the file that an entry of `defaults` stands for."""
    if entry in ("schema", "_self_"):
        return str(entry)
    if isinstance(entry, Mapping) and [*entry] == ["size"] and re.fullmatch(OPTION, str(entry["size"])):
        return f"size/{entry['size']}"
    raise ConfigError(f"{where}: defaults: {entry!r} can't be taken up; expected schema, size: NAME or _self_")


def _check_growth(text: str, where: str) -> None:
    """Counts the values that a YAML text stands for, each alias as often as it is named: nothing is built of it yet."""
    import yaml

    sizes: dict[str | None, int] = {}
    inside: list[tuple[str | None, int]] = [(None, 0)]

    def add(anchor: str | None, size: int) -> None:
        sizes[anchor] = size
        inside[-1] = inside[-1][0], inside[-1][1] + size
        if inside[-1][1] > MOST_VALUES:
            raise ConfigError(f"{where}: more than {MOST_VALUES:,} values, its aliases among them; a recipe has 250")

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            inside.append((event.anchor, 1))
            if len(inside) > MOST_DEPTH:
                raise ConfigError(f"{where}: nested more than {MOST_DEPTH} deep; settings are 4 deep at most")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            add(*inside.pop())
        elif isinstance(event, yaml.AliasEvent):
            add(None, sizes.get(event.anchor, MOST_VALUES + 1))  # unknown: an alias of what it stands in
        elif isinstance(event, yaml.ScalarEvent):
            add(event.anchor, 1)


def _check_override(override: str) -> None:
    """A misspelt key is named before Hydra sees it, with its nearest neighbours."""
    match = re.match(r"[+~]*([^=]+)=(.*)", override, re.DOTALL)
    if match is None or override.startswith(("+", "~")):
        raise ConfigError(f"{override!r}: not of the form key=value")
    key = match.group(1)
    known: dict[str, Any] = _keys()
    sections = {k.rsplit(".", n)[0] for k in known for n in (1, 2) if "." in k}
    if key == "size" and not re.fullmatch(OPTION, match.group(2)):
        raise ConfigError(
            f"{override}: size is one of {', '.join(sorted(path.stem for path in (CONFIGS / 'size').glob('*.yaml')))}"
        )
    if key in known or key in sections or key == "size":
        return
    known = _keys_near(key)
    if key not in known:
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        near = did_you_mean(key, known) or did_you_mean(key.rsplit(".", 1)[-1], last)
        raise ConfigError(f"{key}: no such setting{near}; `synthgen configs --keys` lists them all")


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=_defaults())
    search = [] if folder == CONFIGS else [f"hydra.searchpath=[file://{CONFIGS}]"]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose(name, overrides=[*map(_for_hydra, _studies(overrides)), *search])
        values = OmegaConf.to_container(composed, resolve=False)
    except Exception as error:  # of Hydra, OmegaConf, YAML and ANTLR; and a file can make them fail in other ways
        cause = error.__cause__ or error
        text = " ".join(str(cause).split()).split(" Config search path")[0][:1000] or type(cause).__name__
        unreadable = getattr(error, "override", None) or re.findall(r"Ambiguous value for argument '(\S+)'", text)
        if unreadable:
            given = unreadable if isinstance(unreadable, str) else unreadable[0]
            raise ConfigError(
                f"{given}: can't be read; write a list as KEY=[a,b], and a text with special characters as KEY=\"'a,b'\""
            ) from None
        unknown = re.search(r"Key '([^']+)' is not in struct", text)
        if unknown:
            key = re.search(r"full_key: (\S+)", text)
            full = key.group(1) if key else unknown.group(1)
            if any(k == full or k.startswith(f"{full}.") for k in _keys()):
                raise ConfigError(f"{name}: {full}: not in this file; write `defaults: [schema, _self_]` at its top") from None
            raise ConfigError(
                f"{name}: {full}: no such setting{did_you_mean(full, _keys_near(full))}; `synthgen configs --keys` lists them all"
            ) from None
        raise ConfigError(f"{name}: {text}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: not a table of settings; write KEY: VALUE in its lines")
    return {str(key): value for key, value in values.items()}


def _defaults() -> dict[str, Any]:
    """All keys with their defaults, so that Hydra knows every key that may be set."""
    values: dict[str, Any] = RunConfig.model_construct().model_dump(mode="json")
    return values


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list | tuple):
        for i, value in enumerate(values):
            yield from _leaves(value, f"{prefix}[{i}]")
    else:
        yield prefix, values


def _explain(error: Any) -> str:
    alternatives = ("constrained-float", "float[constrained]")  # pydantic's names for the members of a union
    parts = [str(part) for part in error["loc"]]
    key = ".".join(part for part in parts if part not in alternatives and not part.startswith("literal["))
    if error["type"] == "extra_forbidden":
        return f"{key}: no such setting{did_you_mean(key, _keys_near(key))}; `synthgen configs --keys` lists them all"
    message = error["msg"].removeprefix("Value error, ") or error["type"]
    found = "" if isinstance(error["input"], Mapping) else f", found {_shown(error['input'])}"
    return f"{key}: {message[0].lower() + message[1:]}{found}" if key else message


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:197]}..."


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    args = get_args(annotation)
    text = str(annotation)
    if "Literal" in text.split("[")[0]:
        return "|".join(str(a) for a in args)
    if text.startswith("typing.Annotated") or text.startswith("Annotated"):
        return _type_name(args[0])
    if text.startswith("tuple"):
        return f"list of {_type_name(args[0])}"
    return "|".join(_type_name(a) for a in args)
