"""What the command line does, from Python: every job is a function, a finished run is a `Run`.

    import synthgen as sg

    run = sg.run("digits", "split.seed=3", out="outputs/third")
    run.verdict  # "use", "reject" or "insufficient evidence"
    loader = torch.utils.data.DataLoader(run.samples(), batch_size=64, shuffle=True)

Settings are those of the command line (`synthgen configs --keys`), written as there, as mappings, or as keywords; these
mean the same:

    sg.run("digits", "split.seed=3", "gate.bounds.fid=20")
    sg.run("digits", {"split.seed": 3, "gate.bounds": {"fid": 20}})
    sg.run("digits", split={"seed": 3}, gate={"bounds": {"fid": 20}})

What they have in common: `out` is the output folder (outputs/NAME if not given), `restart=True` makes stages again whose
settings, inputs or code changed, where they are refused otherwise, and `progress` is True (bars on a terminal, a line a
stage elsewhere), False, or a `synthgen.types.Progress` of yours. The same call again goes on where a killed one stopped, and
skips what is finished. Errors are `synthgen.SynthgenError`s: ConfigError, DataError, CheckpointError, StorageError and
TrainingError say what was found and what to do.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from synthgen import jobs, storage
from synthgen.config import extensions
from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.data.audit import AuditReport
from synthgen.errors import ConfigError, DataError
from synthgen.jobs.replays import Replay
from synthgen.jobs.runs import VERDICT_SCHEMA
from synthgen.results import Images, Run
from synthgen.screen import Screen
from synthgen.shards import manifest
from synthgen.types import GateReport, Progress, ShardManifest, Silent
from synthgen.workers import explain_broken_pool

__all__ = [
    "Images", "Replay", "Run", "audit", "compare", "drop", "export", "gain", "gate", "generate", "open", "replay", "report",
    "run", "train", "verify",
]  # fmt: skip

FilePath = str | PathLike[str]
Override = str | Mapping[str, Any]
Result = TypeVar("Result")


# Jobs


def run(
    recipe: FilePath,
    *overrides: Override,
    out: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> Run:
    """The whole factory: audit, split, train, generate, gate, export, gain, verdict, report.

    Args:
        recipe: a shipped recipe (`synthgen configs` lists them), or a YAML file of yours.

    Raises:
        SynthgenError: see the module; every setting is checked before anything is computed.

    Examples:
        >>> run("digits", gate={"bugdet": 500})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        synthgen.errors.ConfigError: gate.bugdet: no such setting; did you mean 'gate.budget' ...
    """
    config = load(str(recipe), written(overrides, settings))
    folder = _folder(out, config.name)
    watch(config, lambda order: jobs.run(order, folder), restart, progress)
    return open(folder)


def open(folder: FilePath) -> Run:
    """A finished run, from its folder.

    Raises:
        DataError: no verdict in it: not a run folder, or the run isn't finished.
    """
    path = Path(folder)
    if not (path / "verdict.json").is_file():
        what = "the run isn't finished; start it again" if (path / "config.yaml").is_file() else "not the folder of a run"
        raise DataError(f"{path}: no verdict.json, so {what}")
    about = storage.read_json(path / "verdict.json")
    if not isinstance(about, dict) or about.get("schema") != VERDICT_SCHEMA:
        raise DataError(f"{path / 'verdict.json'}: not of the schema {VERDICT_SCHEMA!r}; was it written by another version?")
    return Run(path, about)


def audit(
    source: FilePath,
    *overrides: Override,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> AuditReport:
    """Checks real images (duplicates, leakage, labels that look wrong, broken files) and splits them into OUT/split.

    Args:
        source: "digits", an image folder (class/name.png), a Parquet file or folder, an .npz file.
        recipe: whose settings count; `folder` if not given.
    """
    config = settings_for(recipe, None, written(overrides, settings), Path(source))
    folder = _folder(out, config.name)
    watch(config, lambda order: jobs.audit(order, folder), restart, progress, folder)
    path = folder / "audit" / "report.json"
    return AuditReport.from_json(storage.read_json(path), str(path))


def train(
    data: FilePath,
    model: str,
    *overrides: Override,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> Path:
    """The folder of a generator, trained on the train fold of `data`: DATA/train/MODEL if `out` isn't given.

    Args:
        data: folder of `audit`.
        model: vae, vqvae, gan, diffusion, or one that is installed.
    """
    if model not in extensions.BUILT_IN:
        extensions.class_of(model)
    split = Path(data)
    config = settings_for(recipe, split, written(overrides, settings))
    folder = Path(out) if out else split / "train" / model
    watch(config, lambda order: jobs.train_one(order, split, model, folder), restart, progress, folder)
    return folder


def generate(
    checkpoint: FilePath,
    *overrides: Override,
    real: FilePath | None = None,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> Path:
    """The folder of labelled candidates, drawn from a trained generator: REAL/candidates/MODEL if `out` isn't given.

    Args:
        checkpoint: folder of `train`, or its generator.safetensors.
        real: folder of `audit` that it was trained on; found above `checkpoint` if not given.
    """
    trained = Path(checkpoint)
    data = Path(real) if real else run_above(trained)
    config = settings_for(recipe, data, written(overrides, settings))
    folder = Path(out) if out else data / "candidates" / (trained if trained.is_dir() else trained.parent).name
    watch(config, lambda order: jobs.generate(order, jobs.Split.open(data), trained, folder), restart, progress, folder)
    return folder


def gate(
    real: FilePath,
    candidates: FilePath,
    *overrides: Override,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> GateReport:
    """Which candidates are kept, and whether their set is accepted. Takes any tool's images; also in OUT/gate.

    Args:
        real: folder of `audit`, or real images as `audit` takes them.
        candidates: folder of `generate` or `export`, a .tar, or labelled images of any tool.
    """
    config = settings_for(recipe, Path(real), written(overrides, settings), Path(real))
    folder = _folder(out, f"gate-{Path(candidates).stem}")
    watch(
        config,
        lambda order: jobs.assess(order, Path(real), Path(candidates), folder, study_gain=False),
        restart,
        progress,
    )
    return jobs.load_gate(folder / "gate")


def export(
    real: FilePath,
    candidates: FilePath,
    judged: FilePath,
    *overrides: Override,
    studied: FilePath | None = None,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> ShardManifest:
    """Writes what the gate kept as shards: the manifest. Folder: outputs/shards-CANDIDATES if `out` isn't given.

    Args:
        real: folder of `audit`.
        candidates: those that were judged.
        judged: folder of `gate`: its `out`, or OUT/gate.
        studied: folder of `gain` for them: its verdict goes into the card.
    """
    config = settings_for(recipe, Path(real), written(overrides, settings))
    folder = _folder(out, f"shards-{Path(candidates).stem}")
    decided = jobs.Decision.of(Path(studied)) if studied else None
    watch(
        config,
        lambda order: jobs.export(
            order, jobs.Split.open(Path(real)), Path(candidates), gate_folder(Path(judged)), folder, decided
        ),
        restart,
        progress,
        folder,
    )
    return manifest.read(folder)


def gain(
    real: FilePath,
    candidates: FilePath,
    *overrides: Override,
    judged: FilePath | None = None,
    out: FilePath | None = None,
    recipe: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> Run:
    """What labelled synthetic images, of ours or of any tool, add on the locked test set: a verdict with a report.

    Args:
        real: folder of `audit`, or real images as `audit` takes them.
        candidates: as `gate` takes them.
        judged: folder of `gate` for them; judged first if not given.
    """
    config = settings_for(recipe, Path(real), written(overrides, settings), Path(real))
    folder = _folder(out, f"gain-{Path(candidates).stem}")
    judged_in = gate_folder(Path(judged)) if judged else None
    watch(
        config,
        lambda order: jobs.assess(order, Path(real), Path(candidates), folder, True, judged_in),
        restart,
        progress,
    )
    return open(folder)


# Of what is there


def report(folder: FilePath | Run, *, progress: bool | Progress = True) -> Path:
    """Writes the page of a run again, FOLDER/report/index.html with report.json beside it: the page.

    Args:
        folder: of `run` or `gain`, or the run itself.
    """
    path = _folder_of(folder)
    return watch(settings_for(None, None, []), lambda order: jobs.make_report(order, path), False, progress, jobs.lockable(path))


def compare(runs: Iterable[FilePath | Run], out: FilePath | None = None) -> dict[str, Any]:
    """Runs side by side: `columns` and `rows` of texts for a table, `settings` that differ, `notes`, `runs` with the figures.

    Args:
        runs: finished runs or their folders, two or more.
        out: folder for the same as a page, OUT/index.html with compare.json.
    """
    return jobs.compare([_folder_of(each) for each in runs], Path(out) if out else None)


def verify(place: FilePath) -> dict[str, Any]:
    """Whether every byte is as it was written: `problems` names every missing, changed or extra file, [] if there is none.

    Args:
        place: an export, a run folder, or a place elsewhere, as s3://bucket/folder.

    Returns:
        `what` ("export" or "run"), `files` checked, `samples` (None for a run), `problems`.
    """
    return jobs.verify(str(place))


def replay(
    key: str,
    export: FilePath,
    *overrides: Override,
    checkpoint: FilePath | None = None,
    image: FilePath | None = None,
    **settings: Any,
) -> Replay:
    """A sample of an export, made again from its checkpoint: `.differing` is the number of bytes that aren't the same.

    Args:
        key: of the sample, as the export names it.
        export: folder of `export`, or of a run's shards.
        checkpoint: generator.safetensors; looked for in the run folder around `export` if not given.
        image: write the sample there, as PNG.
        overrides: `"device=cuda"`; nothing else counts.
        settings: the same as keywords.
    """
    found, picture = (Path(path) if path else None for path in (checkpoint, image))
    return watch(
        settings_for(None, None, written(overrides, settings)),
        lambda order: jobs.replay(order, key, Path(export), found, picture),
        progress=False,
    )


def drop(
    export: FilePath,
    keys: Iterable[str] = (),
    *overrides: Override,
    near: Iterable[str] = (),
    out: FilePath | None = None,
    restart: bool = False,
    progress: bool | Progress = True,
    **settings: Any,
) -> ShardManifest:
    """Writes an export anew without some samples: its manifest. Folder: EXPORT-without if `out` isn't given.

    Args:
        export: folder of `export`, or of a run's shards; it stays as it is.
        keys: of samples to leave out.
        near: keys of real images: the samples that are nearest to one of them go too.
    """
    source = Path(export)
    folder = Path(out) if out else source.with_name(f"{source.name}-without")
    gone, real = ([each] if isinstance(each, str) else list(each) for each in (keys, near))
    return watch(
        settings_for(None, None, written(overrides, settings)),
        lambda order: jobs.drop(order, source, gone, real, folder),
        restart,
        progress,
        folder,
    )


# Settings


def written(overrides: Sequence[Override], settings: Mapping[str, Any] | None = None) -> list[str]:
    """Settings as the command line has them, KEY=VALUE.

    >>> written(["split.seed=3", {"data": {"path": "my photos", "classes": ["7", "cat"]}}], {"models": ["vae"], "gain": "full"})
    ['split.seed=3', "data.path='my photos'", "data.classes=['7',cat]", 'models=[vae]', 'gain=full']

    Raises:
        ConfigError: neither text nor a mapping; a value that a setting can't have.
    """
    lines: list[str] = []
    for given in (*overrides, settings or {}):
        if isinstance(given, str):
            lines.append(given)
        elif isinstance(given, Mapping):
            lines += [f"{key}={_value(key, value)}" for key, value in _flat(given)]
        else:
            raise ConfigError(f"{given!r}: a setting is 'KEY=VALUE' or {{'KEY': value}}, found {type(given).__name__}")
    return lines


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections inside sections -> keys with dots."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(key: str, value: Any) -> str:
    """As Hydra's grammar has it: text stays text, whatever it looks like."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple | np.ndarray):
        return f"[{','.join(_value(key, item) for item in value)}]"
    if not isinstance(value, str | PathLike):
        raise ConfigError(f"{key}: a value is text, a number, true or false, None, or a list of these; found {value!r}")
    text = str(value)
    if re.fullmatch(r"[A-Za-z_]+", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def settings_for(recipe: FilePath | None, beside: Path | None, overrides: list[str], source: Path | None = None) -> RunConfig:
    """Settings from a recipe, or from the config.yaml beside the data; `source` becomes the data if it isn't split yet."""
    found = None
    if beside is not None and (jobs.is_split(beside) or (beside / "verdict.json").is_file()):
        places = (beside, beside.parent) if (beside / "dataset.json").is_file() else (beside,)
        found = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
    if recipe is None and found is not None:
        return load(str(found), overrides)
    if source is None and beside is not None:
        source = beside
    placeholder = [] if any(given.startswith("data.path=") for given in overrides) else ["data.path=unknown"]
    config = load(str(recipe or "folder"), [*placeholder, *overrides])
    return config if source is None or jobs.is_split(source) else jobs.source_of(source, config)


# Folders, and who watches


def run_above(checkpoint: Path) -> Path:
    """The run folder that a checkpoint stands in.

    Raises:
        ConfigError: there is none.
    """
    for folder in checkpoint.resolve().parents:
        if (folder / "split" / "stage.json").is_file():
            return folder
    raise ConfigError(
        f"{checkpoint}: no split/ in a folder above it; say with real (--real) which folder of `audit` it was trained on"
    )


def gate_folder(path: Path) -> Path:
    """OUT/gate where OUT is given."""
    return path / "gate" if (path / "gate" / "gate.json").is_file() else path


def _folder_of(run: FilePath | Run) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _folder(out: FilePath | None, name: str) -> Path:
    return Path(out) if out else Path("outputs") / name


def watch(
    config: RunConfig,
    job: Callable[[jobs.Order], Result],
    restart: bool = False,
    progress: bool | Progress = True,
    locked: Path | None = None,
) -> Result:
    """Runs a job before somebody's eyes, with the lock of its folder unless it takes that itself."""
    with _watching(progress) as watcher, storage.lock(locked) if locked else nullcontext(), _script_runs_once():
        try:
            return job(jobs.Order(config, restart, watcher))
        except BrokenProcessPool as error:
            raise explain_broken_pool(error) from error


@contextmanager
def _watching(progress: bool | Progress) -> Iterator[Progress]:
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield Silent()
    else:  # a notebook shows standard error in red and redraws no bars: it gets a line a stage on standard output
        notebook = Console().is_jupyter
        terminal = False if notebook else None
        console = Console(stderr=not notebook, force_jupyter=False, force_terminal=terminal, highlight=False, soft_wrap=True)
        with Screen(console=console) as screen:
            yield screen


@contextmanager
def _script_runs_once() -> Iterator[None]:
    """Worker processes don't import the caller's script within.

    Python's spawned processes do so by default, and a script without `if __name__ == "__main__":` would start the job once
    more in each. Ours need nothing of it.
    """
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    main.__spec__ = None
    if "__file__" in kept:
        del main.__file__
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)
