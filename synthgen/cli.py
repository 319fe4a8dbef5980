"""The `synthgen` command: parse, call a job, print, exit code. Heavy imports stay inside the commands.

Exit codes: 0 the job ran, whatever its verdict; 10 and 11 with --exit-code, the verdict is "reject" or "insufficient
evidence"; 2 to 6 see `synthgen.errors`; 70 a defect of synthgen; 130 Ctrl-C; 143 SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from synthgen import preemption
from synthgen.errors import (
    EXIT_DEFECT,
    EXIT_INSUFFICIENT,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_REJECT,
    StorageError,
    SynthgenError,
)
from synthgen.options import EPILOG, Debug, ExitCode, JobCommand, Json, Out, Overrides, Quiet, RecipeOption, Restart

app = typer.Typer(
    help="Synthetic image data that is proven to help: train generators on your labelled images, gate and export samples, "
    "and measure on a locked test set what they add to the best that real data alone can do.",
    epilog=EPILOG,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        from synthgen import __version__

        typer.echo(f"synthgen {__version__}")
        raise typer.Exit


def run(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe (`synthgen configs`), or a YAML file of yours")],
    overrides: Overrides = None,
    out: Out = None,
    restart: Restart = False,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole factory: audit, split, train, generate, gate, export, gain, verdict, report.

    The same command again goes on where a killed run stopped.
    """
    from synthgen.config.load import load

    config = load(recipe, overrides or [])
    folder = out or Path("outputs") / config.name
    from synthgen import jobs

    about = _watch(config, restart, quiet, lambda order: jobs.run(order, folder))
    _conclude(about, folder, exit_code, quiet, json)


def audit(
    source: Annotated[
        Path, typer.Argument(help="digits, an image folder (class/name.png), a Parquet file or folder, an .npz file")
    ],
    overrides: Overrides = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Checks real images and splits them: OUT/audit/report.json and OUT/split/."""
    config = _config(recipe, None, overrides, source)
    folder = out or Path("outputs") / config.name
    from synthgen import jobs, storage
    from synthgen.screen import show_audit

    _watch(config, restart, quiet, lambda order: jobs.audit(order, folder), folder)
    report = storage.read_json(folder / "audit" / "report.json")
    _print(report, json, quiet, lambda: show_audit(report, str(folder)))


def train(
    data: Annotated[Path, typer.Argument(help="folder of `synthgen audit`")],
    model: Annotated[str, typer.Argument(help="vae, vqvae, gan, diffusion, or one that is installed")],
    overrides: Overrides = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Trains a generator on the train fold: OUT/generator.safetensors. Default OUT: DATA/train/MODEL.

    The gate's networks in DATA/features, trained first where they aren't there, look at its samples (`looks.times=0`: not).
    """
    from synthgen.config import extensions

    if model not in extensions.BUILT_IN:
        extensions.class_of(model)
    config = _config(recipe, data, overrides)
    from synthgen import jobs

    folder = out or data / "train" / model
    _watch(config, restart, quiet, lambda order: jobs.train_one(order, data, model, folder), folder)


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="folder of `synthgen train`, or its generator.safetensors")],
    overrides: Overrides = None,
    real: Annotated[
        Path | None,
        typer.Option("--real", help="folder of `synthgen audit` that it was trained on; default: found above CHECKPOINT"),
    ] = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draws labelled candidates: OUT/candidates.parquet. Default OUT: REAL/candidates/MODEL."""
    from synthgen import api, jobs

    real = real or api.run_above(checkpoint)
    config = _config(recipe, real, overrides)

    folder = out or real / "candidates" / (checkpoint if checkpoint.is_dir() else checkpoint.parent).name
    _watch(config, restart, quiet, lambda order: jobs.generate(order, jobs.Split.open(real), checkpoint, folder), folder)


def gate(
    real: Annotated[
        Path, typer.Option("--real", help="folder of `synthgen audit`, or real images as `synthgen audit` takes them")
    ],
    candidates: Annotated[
        Path,
        typer.Option("--candidates", help="folder of `synthgen generate` or `export`, a .tar, or labelled images of any tool"),
    ],
    overrides: Overrides = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Keeps or drops each candidate, accepts or rejects the set: OUT/gate/gate.json. Takes any tool's images."""
    config = _config(recipe, real, overrides, real)
    folder = out or Path("outputs") / f"gate-{candidates.stem}"
    from synthgen import jobs
    from synthgen.screen import show_gate

    _watch(config, restart, quiet, lambda order: jobs.assess(order, real, candidates, folder, study_gain=False))
    report = jobs.load_gate(folder / "gate")
    _print(report.to_json(), json, quiet, lambda: show_gate(report, str(folder)))
    _exit(exit_code, report.verdict)


def export(
    real: Annotated[Path, typer.Option("--real", help="folder of `synthgen audit`")],
    candidates: Annotated[Path, typer.Option("--candidates", help="the candidates that were judged")],
    judged: Annotated[Path, typer.Option("--gate", help="folder of `synthgen gate`: OUT or OUT/gate")],
    overrides: Overrides = None,
    studied: Annotated[
        Path | None, typer.Option("--gain", help="folder of `synthgen gain` for them: its verdict goes into the card")
    ] = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Writes what the gate kept as shards, with card, croissant.json and manifest. Default OUT: outputs/shards-CANDIDATES.

    `export.to=s3://bucket/folder` copies it there too, its manifest last.
    """
    config = _config(recipe, real, overrides)
    folder = out or Path("outputs") / f"shards-{candidates.stem}"
    from synthgen import api, jobs
    from synthgen.shards import manifest

    decided = jobs.Decision.of(studied) if studied else None
    _watch(
        config,
        restart,
        quiet,
        lambda order: jobs.export(order, jobs.Split.open(real), candidates, api.gate_folder(judged), folder, decided),
        folder,
    )
    _print(manifest.read(folder).to_json(), json, True, lambda: None)


def gain(
    real: Annotated[
        Path, typer.Option("--real", help="folder of `synthgen audit`, or real images as `synthgen audit` takes them")
    ],
    candidates: Annotated[Path, typer.Option("--candidates", help="labelled synthetic images: of ours, or of any tool")],
    judged: Annotated[
        Path | None, typer.Option("--gate", help="folder of `synthgen gate` for them; judged first if not given")
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    recipe: RecipeOption = None,
    restart: Restart = False,
    exit_code: ExitCode = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measures what synthetic images add on the locked test set: OUT/gain/gain.json, OUT/verdict.json, a report."""
    config = _config(recipe, real, overrides, real)
    folder = out or Path("outputs") / f"gain-{candidates.stem}"
    from synthgen import api, jobs

    gate_folder = api.gate_folder(judged) if judged else None
    about = _watch(config, restart, quiet, lambda order: jobs.assess(order, real, candidates, folder, True, gate_folder))
    _conclude(about, folder, exit_code, quiet, json)


def report(
    folder: Annotated[Path, typer.Argument(help="run folder, as `run` and `gain` write it")],
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Writes FOLDER/report/index.html and report.json from what stands on disk: one page, no network."""
    config = _config(None, None, None)
    from synthgen import jobs

    _watch(config, False, quiet, lambda order: jobs.make_report(order, folder), jobs.lockable(folder))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="finished run folders, two or more")],
    out: Annotated[Path | None, typer.Option("--out", help="also a page there: OUT/index.html and OUT/compare.json")] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Puts runs side by side: verdicts, gains, gates, cost, and the settings that differ."""
    from synthgen import jobs
    from synthgen.screen import show_compare

    found = jobs.compare(runs, out)
    _print(found, json, quiet, lambda: show_compare(found, str(out / "index.html") if out else None))


def verify(
    place: Annotated[str, typer.Argument(help="an export, a run folder, or s3://bucket/folder of `export.to`")],
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Checks every byte against what was written; names every missing, changed or extra file and exits with 5."""
    from synthgen import jobs
    from synthgen.errors import StorageError

    found = jobs.verify(place)
    if json or not found["problems"]:
        samples = f", {found['samples']:,} samples" if found["samples"] is not None else ""
        _print(found, json, quiet, lambda: typer.echo(f"{place}: as it was written: {found['files']:,} files{samples}"))
    else:
        typer.echo("\n".join(found["problems"]))
    if found["problems"]:
        raise StorageError(f"{place}: {len(found['problems'])} of its files differ from what was written; copy or make it again")


def replay(
    key: Annotated[str, typer.Argument(help="key of a sample, as the export names it")],
    export: Annotated[Path, typer.Argument(help="folder of the export")],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="generator.safetensors; default: in the run folder around EXPORT")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="write the sample there, as PNG")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="device=cuda")] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Makes a sample again from its checkpoint and compares the pixels; exits with 4 where a byte differs."""
    from synthgen import jobs
    from synthgen.errors import CheckpointError
    from synthgen.shards.manifest import read

    config = _config(None, None, overrides)
    found = _watch(config, False, True, lambda order: jobs.replay(order, key, export, checkpoint, image))
    line = found.in_words(read(export))
    if json or not found.differing:
        about = {"key": key, "same": not found.differing, "differing_bytes": found.differing, "largest": found.largest}
        _print(about, json, quiet, lambda: typer.echo(line))
    if found.differing:
        raise CheckpointError(line)


def drop(
    export: Annotated[Path, typer.Argument(help="folder of the export; it stays as it is")],
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="samples to leave out")] = None,
    listed: Annotated[Path | None, typer.Option("--keys", help="file with a key a line")] = None,
    near: Annotated[
        list[str] | None, typer.Option("--near", help="key of a real image: leave out the samples that are nearest to it")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="export.shard_size, export.shard_mb, export.to")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="new export; default: EXPORT-without")] = None,
    restart: Restart = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Writes an export anew without some samples: a request to withdraw them, or what hangs on a real image."""
    from synthgen import jobs
    from synthgen.errors import ConfigError, DataError

    wanted = list(keys or [])
    if listed is not None:
        try:
            wanted += listed.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{listed}: not readable as text ({error}); give a file with a key a line") from None
    for given in overrides or []:
        if given.split("=")[0] not in ("export.shard_size", "export.shard_mb", "export.to"):
            raise ConfigError(
                f"--set {given}: drop takes export.shard_size, export.shard_mb and export.to; the rest stays as it was"
            )
    config = _config(None, None, overrides)
    folder = out or export.with_name(f"{export.name}-without")
    made = _watch(config, restart, quiet, lambda order: jobs.drop(order, export, wanted, near or [], folder), folder)
    _print(made.to_json(), json, True, lambda: None)


def configs(
    keys: Annotated[bool, typer.Option("--keys", help="list every setting with type, default and meaning")] = False,
    recipe: Annotated[str | None, typer.Option("--show", help="print a recipe's whole configuration as YAML")] = None,
    debug: Debug = False,
) -> None:
    """Lists the shipped recipes."""
    from synthgen.config.load import known_keys, load, recipes

    if recipe:
        import yaml

        needs_path = [] if recipe != "folder" else ["data.path=FOLDER"]
        typer.echo(yaml.safe_dump(load(recipe, needs_path).model_dump(mode="json"), sort_keys=False), nl=False)
    elif keys:
        for key, (kind, default, meaning) in known_keys().items():
            typer.echo(f"{key} = {default!r}  ({kind})  {meaning}")
    else:
        for name, head in recipes().items():
            typer.echo(f"{name:<13} {head}")


def arms(json: Json = False, debug: Debug = False) -> None:
    """Lists the arms of the gain study: what each is, which side it stands on, what it needs."""
    from synthgen.screen import show_arms

    show_arms(json)


TOP = ("name", "seed", "device", "precision", "workers", "tracking", "project", "group")
JUDGING = ("features", "classifier", "gate")

COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "run": (run, (*TOP, "models", "data", "split", "audit", "augment", "generators", *JUDGING, "generate", "export", "gain")),
    "audit": (audit, ("name", "data", "split", "audit")),
    "train": (train, ("seed", "device", "precision", "tracking", "augment", "generators")),
    "generate": (generate, ("device", "generate", "generators")),
    "gate": (gate, ("seed", "device", "data", "split", "augment", *JUDGING)),
    "export": (export, ("export",)),
    "compare": (compare, ()),
    "verify": (verify, ()),
    "replay": (replay, ()),
    "drop": (drop, ()),
    "gain": (gain, (*TOP, "data", "split", "augment", *JUDGING, "gain")),
    "report": (report, ()),
    "arms": (arms, ()),
    "configs": (configs, ()),
}  # fmt: skip
"""Command -> its function and the sections of the settings that it reads."""

for _name, (_function, _sections) in COMMANDS.items():
    app.command(_name, cls=type(f"{_name.title()}Command", (JobCommand,), {"sections": _sections}))(_function)


def main() -> None:
    """Runs the command line; one line for a user's error, no traceback unless --debug."""
    said = ""
    try:
        preemption.listen()
        code = _main()
    except (KeyboardInterrupt, preemption.Preempted) as signal:
        by_hand = str(signal) in ("", preemption.INTERRUPT)
        code, said = (EXIT_INTERRUPTED, "") if by_hand else (EXIT_PREEMPTED, f"stopped by {signal}")
    if code == EXIT_INTERRUPTED:
        said = "interrupted"
    if said:
        typer.echo(f"{said}; run the same command again to go on", err=True)
    sys.exit(code)


def _main() -> int:
    if "--debug" not in sys.argv:
        warnings.simplefilter("ignore")
    try:
        return int(app(standalone_mode=False) or 0)
    except Exception as error:
        if preemption.asked():  # a library made an error of its own of being stopped
            raise preemption.Preempted(preemption.asked()) from error
        if type(error).__name__ in ("Abort", "KeyboardInterrupt"):
            raise KeyboardInterrupt from None
        if "--debug" in sys.argv and not hasattr(error, "show") and not isinstance(error, BrokenPipeError):
            raise
        return _failed(error)


def _failed(error: Any) -> int:
    """Says what went wrong in a line: the exit code."""
    from synthgen.data.names import shown  # paths may be called what a terminal would obey

    if isinstance(error, SynthgenError):
        typer.echo(f"synthgen: {shown(' '.join(str(error).splitlines()))}", err=True)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # whoever read our output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        return _trouble_of_the_disk(error)
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line
        error.show()
        return int(error.exit_code)
    what = shown(f"{type(error).__name__}: {error}")
    typer.echo(f"synthgen: a defect of synthgen, please report it: {what} (--debug shows the traceback)", err=True)
    return EXIT_DEFECT


def _trouble_of_the_disk(error: OSError) -> int:
    """A file that can't be read, or written by another library: its name, the cause and a remedy."""
    from synthgen.data.names import shown

    which = f"{shown(str(error.filename))}: " if error.filename else ""
    cause = shown(error.strerror or f"{type(error).__name__}: {error}")
    remedy = "see that the disk is there, has room and may be used, then run the same command again"
    if error.errno in (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        remedy = "give another path"
    typer.echo(f"synthgen: {which}{cause}; {remedy}", err=True)
    return StorageError.exit_code


def _config(recipe: str | None, beside: Path | None, overrides: list[str] | None, source: Path | None = None) -> Any:
    """Settings from a recipe, or from the config.yaml beside the data; `source` becomes the data if it isn't split yet."""
    from synthgen import api

    return api.settings_for(recipe, beside, list(overrides or []), source)


def _watch(config: Any, restart: bool, quiet: bool, job: Callable[[Any], Any], locked: Path | None = None) -> Any:
    """Runs a job under the progress bars, with the lock of its folder unless it takes that itself."""
    from synthgen import api

    return api.watch(config, job, restart, not quiet, locked)


def _conclude(about: Any, folder: Path, exit_code: bool, quiet: bool, json: bool) -> None:
    from synthgen.screen import output, show_verdict

    _print(about, json, quiet, lambda: show_verdict(about, str(folder), output()))
    _exit(exit_code, about["verdict"])


def _print(result: Any, json: bool, quiet: bool, show: Callable[[], None]) -> None:
    from synthgen.screen import show_json

    if json:
        show_json(result)
    elif not quiet:
        show()


def _exit(exit_code: bool, verdict: str) -> None:
    if exit_code and verdict != "use" and verdict != "accept":
        raise typer.Exit(EXIT_REJECT if verdict == "reject" else EXIT_INSUFFICIENT)
