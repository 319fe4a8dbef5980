"""The run on a dashboard: Weights & Biases (the only import of wandb), or TensorBoard or CSV files. Off does nothing.

A dashboard never fails a job: whatever goes wrong becomes one line of warning, and the tracker is off from there on. It
never holds one up either: a run is always written to an offline file first, and what is online is a `wandb sync` of that
file by a process of its own, which gets `ANSWER_S` to find a server and then `SEND_S` and a second a megabyte.

The command line, the code, git, the host, the environment and the console stay out of the run's files and of what is sent.
An offline file says where on this machine the artifacts to be sent lie, since `wandb sync` needs that.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from synthgen import elsewhere, logs, storage

Mode = Literal["off", "offline", "online", "tensorboard", "csv"]

ANSWER_S = 5
"""Seconds in which a server has to say anything at all."""
SEND_S = 30
"""Seconds in which a run without artifacts has to be sent; then the run goes on and `wandb sync` can send it later."""
SENT_BYTES_A_S = 1_000_000
RECORDED = "recorded.json"
"""In the folder of wandb's files: which run was written last, so that the same command again doesn't write it twice."""

log = logging.getLogger("synthgen")


class Tracker:
    """Where a run is recorded; this one records nothing.

    Attributes:
        where: what to tell the user about it, empty if nothing.
    """

    where = ""

    @property
    def on(self) -> bool:
        """Whether anything is recorded still."""
        return False

    def curve(self, name: str, axis: str, points: Sequence[tuple[float, float]]) -> None:
        """A figure over an axis of its own: (axis, figure) pairs, in any order."""

    def image(self, name: str, png: bytes, caption: str = "", axis: str = "", step: int = 0) -> None:
        """A PNG; with an axis it is one of a series."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; a cell is a number, a text, or None."""

    def plot(self, name: str, figure: Any) -> None:
        """An interactive Plotly figure, where the dashboard can show one."""

    def artifact(self, name: str, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any], alias: str = "") -> None:
        """Files under their names; they are sent from where they are, not copied. `metadata` tells what they were made from."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Fields that runs are sorted by."""

    def alert(self, title: str, text: str) -> None:
        """A message to whoever follows the project."""

    def finish(self, failed: bool = False) -> None:
        """Closes the run; what comes after is ignored."""


class WandB(Tracker):
    """A run of Weights & Biases."""

    def __init__(self, run: Any, private: Sequence[str] = ()) -> None:
        self._run, self._private = run, private
        self.where = ""

    @property
    def on(self) -> bool:
        return self._run is not None

    def curve(self, name: str, axis: str, points: Sequence[tuple[float, float]]) -> None:
        def send(run: Any) -> None:
            run.define_metric(name, step_metric=axis)
            for at, value in points:
                run.log({name: float(value), axis: at})

        self._try(f"curve {name}", send)

    def image(self, name: str, png: bytes, caption: str = "", axis: str = "", step: int = 0) -> None:
        def send(run: Any) -> None:
            import wandb
            from PIL import Image

            picture = wandb.Image(Image.open(io.BytesIO(png)), caption=self._public(caption) or None)
            if axis:
                run.define_metric(name, step_metric=axis)
            run.log({name: picture, **({axis: step} if axis else {})})

        self._try(f"image {name}", send)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        def send(run: Any) -> None:
            import wandb

            data: list[Any] = [[self._public(cell) for cell in row] for row in rows]
            run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})

        self._try(f"table {name}", send)

    def plot(self, name: str, figure: Any) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Plotly(figure)})

        self._try(f"plot {name}", send)

    def artifact(self, name: str, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any], alias: str = "") -> None:
        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, kind, metadata=self._public(dict(metadata)))
            for inside, path in sorted(files.items()):
                artifact.add_file(str(path), inside, policy="immutable")
            run.log_artifact(artifact, aliases=["latest", *([alias] if alias else [])])

        self._try(f"artifact {name}", send)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._try("summary", lambda run: run.summary.update(self._public(dict(values))))

    def alert(self, title: str, text: str) -> None:
        self._try("alert", lambda run: run.alert(title, self._public(text)))

    def finish(self, failed: bool = False) -> None:
        self._try("finish", lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _public(self, value: Any) -> Any:
        """A text, or what holds texts, without logins and without the places that nobody else need know."""
        if isinstance(value, Mapping):
            return {key: self._public(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._public(item) for item in value]
        if not isinstance(value, str):
            return value
        for place in self._private:
            value = value.replace(place, f"\u2026/{PureWindowsPath(place).name}")
        return elsewhere.without_login(value)

    def _try(self, what: str, send: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:
            _warn(what, error)
            run, self._run = self._run, None
            with suppress(Exception):  # no process of wandb's is left behind
                run.finish(exit_code=1)


class Files(Tracker):
    """TensorBoard events or CSV files of a run in `logs/run`; interactive figures, artifacts and alerts have no place there."""

    def __init__(self, mode: str, out: Path) -> None:
        self.out, self.mode = out, mode
        self._log = logs.Log(mode, out / logs.FOLDER / "run")
        self.where = f"tensorboard --logdir {out / logs.FOLDER}" if mode == "tensorboard" else str(out / logs.FOLDER)

    @property
    def on(self) -> bool:
        return self._log.on

    def curve(self, name: str, axis: str, points: Sequence[tuple[float, float]]) -> None:
        if name.startswith("train/") and (self.out / logs.FOLDER / PurePosixPath(name).parent).is_dir():
            return  # written while it was trained
        for at, value in points:
            self._log.figures({name: float(value)}, int(at))

    def image(self, name: str, png: bytes, caption: str = "", axis: str = "", step: int = 0) -> None:
        self._log.image(name, png, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._log.table(name, columns, [[_no_formula(cell) for cell in row] for row in rows])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.table("summary", ["field", "value"], list(values.items()))
        self._log.figures({name: float(v) for name, v in values.items() if isinstance(v, (int, float))}, 0)

    def finish(self, failed: bool = False) -> None:
        self._log.close()


def _no_formula(cell: Any) -> Any:
    """A text that a spreadsheet would compute, or ask a program for, as the text that it is, in one line."""
    if not isinstance(cell, str):
        return cell
    line = "".join(" " if ord(char) < 32 else char for char in cell)
    return f"'{line}" if line.lstrip(" ").startswith(("=", "+", "-", "@")) else line


@contextmanager
def open_run(
    mode: Mode,
    project: str,
    group: str,
    name: str,
    folder: Path,
    config: Mapping[str, Any],
    identity: Any = None,
    private: Sequence[str] = (),
) -> Iterator[Tracker]:
    """A tracker for the length of a `with` block; the run fails on the dashboard where the block raises.

    Args:
        mode: "off" imports nothing and writes nothing; "offline" is sent later by `wandb sync`, "online" at the end of the
            block; "tensorboard" and "csv" write to `folder/logs`.
        project, group, name: on the dashboard. In a sweep W&B says project, name and id.
        folder: of the run; wandb's files go to its subfolder `wandb`.
        config: settings to show, as JSON types; of an absolute path only the last part is kept.
        identity: what the run's id is made from, as JSON types; a run that stands in `folder` already isn't written again,
            only sent if it wasn't. None gives a random id.
        private: places on this machine that no text of the run names to W&B but by their last part; `folder` is one already.

    Raises:
        ConfigError: see `logs.check`.
    """
    if mode in logs.KINDS:
        tracker: Tracker = Files(mode, folder)
    elif mode == "off":
        tracker = Tracker()
    else:
        key = storage.sha256_json([project, group, name, identity])[:16] if identity is not None else None
        known = _recorded(folder, key)
        project, group, name = (elsewhere.without_login(text) for text in (project, group, name))
        places = sorted({str(folder), str(folder.resolve()), *private} - {"", ".", "/"}, key=len, reverse=True)
        tracker = WandB(None if known else _start(project, group, name, folder, config, key), places)
    wandb_folder = _folder_of(tracker)
    with _staged_in(folder / "wandb"):
        try:
            yield tracker
        except BaseException:
            tracker.finish(failed=True)
            raise
        whole = tracker.on
        tracker.finish()
    if isinstance(tracker, WandB):
        if whole and wandb_folder is not None:
            storage.write_json(folder / "wandb" / RECORDED, {"id": key, "folder": wandb_folder.name})
        found = wandb_folder if whole else known
        tracker.where = _send(found, mode) if found is not None else ""


def in_sweep() -> bool:
    """Whether an agent of W&B has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def _start(project: str, group: str, name: str, folder: Path, config: Mapping[str, Any], key: str | None) -> Any:
    """An offline run of wandb with nothing of the machine in it; None where wandb can't start."""
    try:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        named: dict[str, Any] = {} if in_sweep() else {"project": project, "run_name": name}
        if key and not os.environ.get("WANDB_RUN_ID"):
            named["run_id"] = key
        settings = wandb.Settings(
            mode="offline",
            run_group=group,
            root_dir=str(folder),
            silent=True,
            console="off",
            symlink=False,
            host="",
            program="synthgen",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=SEND_S,
            finish_timeout=SEND_S,
            **named,
        )
        return wandb.init(config=_without_paths(dict(config)), settings=settings, reinit="create_new")
    except Exception as error:
        _warn("start", error)
        return None


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """wandb keeps copies of tables here until they are sent, not in the user's home, whose name the run's file would tell."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


def _folder_of(tracker: Tracker) -> Path | None:
    """The folder that wandb writes a run to."""
    run = getattr(tracker, "_run", None)
    return Path(run.settings.sync_dir) if run is not None else None


def _recorded(folder: Path, key: str | None) -> Path | None:
    """Where the run of this id was written by an earlier command; None if it wasn't."""
    note = folder / "wandb" / RECORDED
    if key is None or not note.is_file():
        return None
    about = storage.read_json(note)
    if not isinstance(about, dict) or about.get("id") != key:
        return None
    found = folder / "wandb" / str(about.get("folder"))
    return found if found.is_dir() else None


# Sending


def _send(folder: Path, mode: Mode) -> str:
    """What became of a run's file: sent, or how to send it; empty where a warning says so."""
    by_hand = f"`wandb sync {folder}` sends it"
    if mode != "online" or os.environ.get("WANDB_MODE", "online") != "online":
        return by_hand
    if any(folder.glob("*.wandb.synced")):
        return "sent before"
    try:
        problem = _sync(folder)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem:
        log.warning("Weights & Biases: the run was not sent (%s), and the job goes on; %s", problem, by_hand)
        return ""
    return "sent"


def _sync(folder: Path) -> str:
    """Why the run couldn't be sent; empty if it was."""
    silent = _silence_of(_base_url())
    if silent:
        return silent
    # -P, and not started there: the run folder, which may be somebody else's, is no place to import wandb from
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--yes", str(folder.resolve())]
    limit = SEND_S + _bytes_to_send(folder) / SENT_BYTES_A_S
    # a wandb and a session of its own: what it starts is ended with it, and its trouble isn't ours
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"PYTHONSAFEPATH": "1", "WANDB_DIR": str(folder.parent.parent)}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    process = subprocess.Popen(command, env=environment, text=True, **quiet)  # type: ignore
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done in {limit:.0f} s"
    finally:
        _end(process)
    if process.returncode == 0 and any(folder.glob("*.wandb.synced")):
        return ""
    lines = [line.removeprefix("wandb: ").strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("ERROR", "Error")) and "<no message>" not in line]
    return telling[-1][:200] if telling else f"wandb sync ended with {process.returncode}; is the API key right?"


def _base_url() -> str:
    """Of the server, by the environment or the settings of `wandb login`."""
    import wandb

    return str(wandb.setup().settings.base_url)


def _end(process: Any) -> None:
    """Nothing of a process is left, nor of what it has started."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    process.stdout.close()


def _silence_of(url: str) -> str:
    """Why no server is there; empty if something answers. A refusal is an answer: `wandb sync` says what it means."""
    found: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{url.rstrip('/')}/healthz", timeout=ANSWER_S).close()
            found.append("")
        except urllib.error.HTTPError as error:
            found.append(f"{url} answers {error.code}" if error.code >= 500 else "")
        except Exception as error:
            reason = getattr(error, "reason", error)
            found.append("" if isinstance(reason, ssl.SSLError) else f"{url} doesn't answer: {reason}")  # wandb has its own CAs

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    return found[0] if found else f"{url} doesn't answer in {ANSWER_S} s"


def _bytes_to_send(folder: Path) -> int:
    """Of a run and of its artifacts, which lie elsewhere in the run folder."""
    out = folder.parent.parent
    places = [folder, out / "shards", *out.glob("train/*/generator.safetensors")]
    files = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
    return sum(path.stat().st_size for path in files if path.is_file())


# What isn't sent


def _without_paths(value: Any) -> Any:
    """The last part of every path of this machine, and no login: a dashboard needn't know where things lie."""
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    if isinstance(value, (str, Path)):
        text = str(value)
        if elsewhere.ON_THIS_MACHINE.match(text):
            return PureWindowsPath(text).name  # parted at / and \\ alike
        return elsewhere.without_login(text)
    return value


def _warn(what: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:200]
    log.warning("Weights & Biases is off from here on, and the job goes on: %s: %s: %s", what, type(error).__name__, text)
