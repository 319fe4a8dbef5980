"""Every byte that synthgen writes: atomic files, stage folders with their manifest, the lock of a run folder.

A file is written to a temporary name beside its target, fsynced, renamed, and its folder fsynced. A stage folder holds
its results, `timing.json`, and at last `stage.json` (fingerprint and sha256 of every file): present = whole. The same
command again skips a stage whose fingerprint agrees, and refuses one whose fingerprint differs, with the difference. While a
stage is being made, `resume.json` says so: a folder with neither file is somebody else's and is never emptied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from synthgen.digests import LOCK as LOCK
from synthgen.digests import SEAL, as_text, changes
from synthgen.digests import code_version as code_version
from synthgen.digests import differing as differing
from synthgen.digests import entries as entries
from synthgen.digests import entry_of as entry_of
from synthgen.digests import is_passing as is_passing
from synthgen.digests import leads_out as leads_out
from synthgen.digests import library_versions as library_versions
from synthgen.digests import read_json as read_json
from synthgen.digests import read_sealed as read_sealed
from synthgen.digests import sha256_file as sha256_file
from synthgen.digests import sha256_json as sha256_json
from synthgen.digests import unsealed as unsealed
from synthgen.errors import DataError, StorageError
from synthgen.stages import STAGE_MANIFEST as STAGE_MANIFEST
from synthgen.stages import STAGE_SCHEMA as STAGE_SCHEMA
from synthgen.stages import TIMING as TIMING
from synthgen.stages import apart
from synthgen.stages import check_folder as check_folder
from synthgen.stages import folder_digest as folder_digest
from synthgen.stages import read_manifest as read_manifest
from synthgen.stages import seconds as seconds

try:
    import fcntl
except ImportError:  # Windows: runs, but two processes in one run folder aren't kept apart
    fcntl = None  # type: ignore[assignment]

RESUME = "resume"
"""Files of an unfinished stage whose names begin so survive a restart of the stage and are removed at its end."""
ATTEMPT = f"{RESUME}.json"
ATTEMPT_SCHEMA = "synthgen.attempt/1"


# Atomic files


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name whole, or not at all.

    Raises:
        StorageError: the folder can't be written or the disk is full; the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        make_folder(path.parent)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each on the disk in the one that holds it."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync(each.parent)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: can't be written ({error.strerror or error}); free the disk or choose another --out")


@contextmanager
def loose(folder: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Writes many small files, by name below `folder`; on the disk when the block ends, all of them.

    One wait for the disk in place of one a file: for a stage that isn't whole before its manifest stands.

    Raises:
        StorageError: the folder can't be written or the disk is full.
    """
    written: list[Path] = []
    folders: set[Path] = set()

    def put(name: str, data: bytes) -> None:
        path = folder / name
        try:
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            path.write_bytes(data)
        except OSError as error:
            raise _cannot_write(path, error) from error
        written.append(path)

    yield put
    places = {place for path in folders for place in (path, *path.parents) if folder in (place, *place.parents)} | {folder.parent}
    try:
        for path in written:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for place in places:
            sync(place)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_bytes(path: Path, data: bytes) -> str:
    """Writes a file atomically and returns its sha256."""
    with atomic(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def write_text(path: Path, text: str) -> str:
    """Writes UTF-8 text atomically and returns its sha256."""
    return write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> str:
    """Writes JSON atomically (indented, NaN refused) and returns its sha256."""
    return write_text(path, as_text(data))


def write_sealed(path: Path, data: Mapping[str, Any]) -> str:
    """`write_json` of an object that also holds the sha256 of what else is in it: a manifest, which no other file vouches for."""
    return write_json(path, {**data, SEAL: sha256_json(data)})


def sync(path: Path) -> None:
    """Returns when a file's bytes, or the names in a folder, are on the disk; Windows has no such thing for folders."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Stages


class Stage:
    """One folder of a run while it is being made: see `stage`.

    Attributes:
        folder: where its files go.
        done: whether the folder already holds the finished result of the same work.
        info: what `stage.json` says of a finished stage.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.folder, self.name, self.identity = folder, name, identity
        self.done = False
        self._started = time.perf_counter()

    def path(self, name: str) -> Path:
        """The path of a file of this stage."""
        return self.folder / name

    def write_json(self, name: str, data: Any) -> str:
        """Writes a JSON file of this stage."""
        return write_json(self.path(name), data)

    def write_bytes(self, name: str, data: bytes) -> str:
        """Writes a file of this stage."""
        return write_bytes(self.path(name), data)

    def commit(self) -> None:
        """Records the sha256 of every file in `stage.json`, written last; then removes what was kept for a resumption."""
        write_json(self.path(TIMING), {"seconds": round(time.perf_counter() - self._started, 3)})
        files = {
            path.relative_to(self.folder).as_posix(): entry_of(path)
            for top in sorted(self.folder.iterdir())
            if not top.name.startswith(RESUME) and top.name not in (STAGE_MANIFEST, TIMING, LOCK)
            for path in sorted([top, *top.rglob("*")])
            if path.is_file()
        }
        made = {"schema": STAGE_SCHEMA, "stage": self.name, **self.identity, "files": files}
        write_sealed(self.path(STAGE_MANIFEST), made | {"timing": {TIMING: entry_of(self.path(TIMING))}})
        self.done = True
        self.forget_resume()

    def forget_resume(self) -> None:
        """Removes what was kept for a resumption; also after a kill between `stage.json` and this.

        What can't be removed goes the next time: the stage is finished all the same.
        """
        with suppress(OSError):
            for leftover in list(self.folder.glob(f"{RESUME}*")):
                remove(leftover)


@contextmanager
def stage(
    folder: Path, name: str, config: Mapping[str, Any], inputs: Mapping[str, str], restart: bool = False
) -> Iterator[Stage]:
    """The stage `name` in `folder`: skip the body when `.done`, else write its files; it is committed at the end.

    Args:
        folder: the stage's own folder; an unfinished one is emptied but for its `resume*` files.
        name: of the stage, for messages.
        config: all settings that can change its bytes, as JSON types.
        inputs: name -> digest of every input (`folder_digest`).
        restart: make the stage again where config, inputs or code changed, instead of refusing.

    Raises:
        StorageError: the folder holds the result of other settings, inputs or code, or what one under other versions of the
            libraries would be taken up from (a finished one stays as it is under any); or it is damaged.
    """
    identity = _identity(config, inputs)
    work = Stage(folder, name, identity)
    finished = (folder / STAGE_MANIFEST).exists()
    if finished:
        found = read_manifest(folder)
        changed, libraries = apart(found, identity)
        if not changed:
            check_folder(folder, found)
            work.done = True
            work.forget_resume()
            yield work
            return
        if not restart:
            changed += libraries
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise StorageError(
                f"{folder}: the finished stage {name!r} was made differently: {shown}. "
                "Give --out another folder, or --restart to make it again"
            )
    attempt = _attempt(folder)
    _refuse_foreign(folder, attempt is not None)
    same = not finished and attempt is not None and apart(attempt, identity) == ([], [])
    if not (finished or same or restart or attempt is None):
        _refuse_other_libraries(folder, name, *apart(attempt, identity))
    if not same:  # nobody's attempt: what is left of the old one is never taken for this one's, wherever a kill falls
        write_json(folder / ATTEMPT, {"schema": ATTEMPT_SCHEMA})
    _clear(folder, keep_resume=same)
    write_json(folder / ATTEMPT, {"schema": ATTEMPT_SCHEMA, **identity})
    try:
        yield work
    except BaseException:
        _leave_no_trace(folder, ATTEMPT)
        raise
    work.commit()


def _identity(config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """What a stage is made from, as it is written down."""
    return {"config": dict(config), "inputs": dict(inputs), "code": code_version(), "libraries": library_versions()}


def _refuse_other_libraries(folder: Path, name: str, changed: list[str], libraries: list[str]) -> None:
    """What was begun is neither gone on with under another torch, whose last bits differ, nor thrown away unasked."""
    if not changed and any(path.name != ATTEMPT for path in folder.glob(f"{RESUME}*")):
        raise StorageError(
            f"{folder}: the unfinished stage {name!r} was begun under other libraries: {'; '.join(libraries)}. "
            "Install those again to go on with it, or give --restart to begin it anew"
        )


def finished_but_for(folder: Path, config: Mapping[str, Any], inputs: Mapping[str, str], names: Iterable[str]) -> bool:
    """Whether `folder` holds a finished stage of these settings, inputs, code and libraries, but for some of these settings.

    Args:
        folder: of the stage.
        config, inputs: as `stage` takes them.
        names: of settings, dotted ("gain.watts").
    """
    if not (folder / STAGE_MANIFEST).is_file():
        return False
    found = read_manifest(folder)
    identity = _identity(config, inputs)
    return changes({key: found.get(key) for key in identity}, identity).keys() <= {f"config.{name}" for name in names}


@contextmanager
def unfinished(folder: Path) -> Iterator[None]:
    """A folder of several stages says within that it isn't whole, and goes on saying so where a failing block left others."""

    def stages() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for name in (STAGE_MANIFEST, ATTEMPT) for path in folder.rglob(name)}

    before = stages()
    write_json(mark := folder / ATTEMPT, {"schema": ATTEMPT_SCHEMA})
    try:
        yield
    except BaseException:
        _leave_no_trace(folder, ATTEMPT)
        with suppress(OSError):
            if stages() == before | {mark: mark.stat().st_mtime_ns} and mark not in before:
                mark.unlink()
        raise
    try:
        mark.unlink(missing_ok=True)
        sync(folder)
    except OSError as error:
        raise _cannot_write(mark, error) from error


def _leave_no_trace(folder: Path, mark: str) -> None:
    """Removes our mark from a folder in which nothing was written, and the folder if it is empty then; it may also stay."""
    with suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if mark in names and names <= {mark, LOCK}:
            (folder / mark).unlink()
            if names == {mark}:
                folder.rmdir()


def _attempt(folder: Path) -> dict[str, Any] | None:
    """What an unfinished stage was to be made from; None if the folder doesn't hold one."""
    try:
        note = read_json(folder / ATTEMPT)
    except DataError:
        return None
    if not isinstance(note, dict) or note.get("schema") != ATTEMPT_SCHEMA:
        return None
    return {key: value for key, value in note.items() if key != "schema"}


def _refuse_foreign(folder: Path, unfinished: bool) -> None:
    """A folder with somebody's files in it is never emptied."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(f"{folder}: is a file, expected a folder; choose another --out")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {LOCK}
    if unfinished:
        ours = found
    elif (folder / STAGE_MANIFEST).exists():
        ours = {STAGE_MANIFEST, TIMING, *read_manifest(folder)["files"]}
    else:  # a kill while the first note was written
        ours = {name for name in found if name.startswith(f".{ATTEMPT}.") and name.endswith(".tmp")}
    if found - ours:
        raise StorageError(f"{folder}: holds files that synthgen didn't write ({min(found - ours)!r}); choose an empty --out")


def _clear(folder: Path, keep_resume: bool) -> None:
    """Empties a stage folder, its manifest first, so that a kill in between leaves it unfinished."""
    try:
        if (folder / STAGE_MANIFEST).exists():
            (folder / STAGE_MANIFEST).unlink()
            sync(folder)
        for path in folder.iterdir():
            if path.name not in (ATTEMPT, LOCK) and not (keep_resume and path.name.startswith(RESUME)):
                remove(path)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it; what is gone already is no error."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


# The lock


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a folder and all below it for this process; released when the process ends, however it ends.

    Several processes may work in different folders of one run as long as none holds the whole.

    Raises:
        StorageError: another process holds it, one above or one below it; or the folder can't be made.
    """
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise StorageError(f"{folder}: holds files that synthgen didn't write; choose an empty or new --out")
    whole = Path(os.path.realpath(folder))  # not resolve(), to which a loop of links is no OSError
    with ExitStack() as held:
        for above in whole.parents[:3]:  # a run folder has stages at most two below it
            if above not in _whole and (above / LOCK).is_file():
                held.enter_context(_hold(above, shared=True))
        try:
            make_folder(folder)
        except OSError as error:
            raise _cannot_use(folder, error) from error
        file = held.enter_context(_hold(folder, shared=False))
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise _cannot_use(folder, error) from error
        _whole.add(whole)
        try:
            yield
        finally:
            _whole.discard(whole)
            _leave_no_trace(folder, LOCK)


_whole: set[Path] = set()
"""Folders that this process holds."""


def _hold(folder: Path, shared: bool) -> BinaryIO:
    """The open lock file of a folder, which holds it until it is closed."""
    while True:
        try:
            file = open(folder / LOCK, "rb" if shared else "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _cannot_use(folder, error) from error
        try:
            if fcntl is not None:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                    return file
            file.close()  # whoever held it removed it meanwhile
        except BlockingIOError:
            file.close()
            raise StorageError(
                f"{folder}: in use by process {_holder(folder)}; wait for it, or give --out another folder"
            ) from None
        except OSError as error:
            file.close()
            raise StorageError(f"{folder}: can't be locked ({error.strerror}); choose an --out on another disk") from error


def _holder(folder: Path) -> str:
    """Number of the process that holds a folder, or one below it."""
    for path in sorted(folder.rglob(LOCK)):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().decode(errors="replace").strip() or "unknown"
    return "unknown"


def _cannot_use(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder}: can't be used as an output folder ({error.strerror}); choose another --out")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a run folder, a stage, or the remains of either."""
    marks = [f"{depth}{name}" for depth in ("", "*/", "*/*/") for name in (LOCK, STAGE_MANIFEST, ATTEMPT)]
    return any(next(folder.glob(mark), None) for mark in marks)
