"""Storage: a file is whole or not there, a stage is skipped, refused or remade, and nobody's files are ever deleted."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from synthgen import storage
from synthgen.errors import DataError, StorageError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"steps": 10, "model": {"width": 8, "lr": 0.1}}
INPUTS = {"split": "aa"}


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def make(folder: Path, config=CONFIG, inputs=INPUTS, restart: bool = False, text: str = "one") -> bool:
    """Runs a stage of two files; whether it found itself done."""
    with storage.stage(folder, "toy", config, inputs, restart) as work:
        done = work.done
        if not done:
            work.write_json("result.json", {"text": text})
            work.write_bytes("deep/data.bin", text.encode())
    return done


def die_in(folder: Path, config=CONFIG, restart: bool = False) -> None:
    """A stage that stops half-way and leaves work to resume from."""
    with suppress(KeyboardInterrupt), storage.stage(folder, "toy", config, INPUTS, restart) as work:
        work.write_bytes("half.bin", b"half")
        work.write_bytes("resume-0.ckpt", b"progress")
        work.write_bytes("resume/cell.bin", b"a cell")
        raise KeyboardInterrupt


# Atomic files


def test_a_file_comes_back_with_its_hash(tmp_path):
    path = tmp_path / "new" / "folders" / "data.bin"
    assert storage.write_bytes(path, b"abc") == storage.sha256_file(path)
    assert path.read_bytes() == b"abc"
    storage.write_text(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, broken):
    path = tmp_path / "data.bin"
    storage.write_bytes(path, b"old")
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(StorageError, match=r"data\.bin: can't be written \(No space left on device\)"):
        storage.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


def test_an_exception_in_the_writer_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "data.bin"
    storage.write_bytes(path, b"old")
    with suppress(ZeroDivisionError), storage.atomic(path) as file:
        file.write(b"half of the n")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    storage.write_bytes(tmp_path / "data.bin", b"abc")
    assert order == ["fsync", "rename", "fsync"]


def test_a_file_where_a_folder_is_needed_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="can't be written"):
        storage.write_bytes(tmp_path / "file" / "data.bin", b"abc")


def test_json_comes_back_and_nan_is_refused(tmp_path):
    data = {"b": [1, 2.5, None], "a": "grün"}
    storage.write_json(tmp_path / "data.json", data)
    assert storage.read_json(tmp_path / "data.json") == data
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json(tmp_path / "nan.json", {"loss": float("nan")})
    assert names(tmp_path) == ["data.json"]
    assert storage.sha256_json(data) == storage.sha256_json(dict(reversed(data.items())))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_damaged_json_file_is_named(tmp_path, content):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        storage.read_json(tmp_path / "none.json")
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.json: not readable as JSON"):
        storage.read_json(tmp_path / "data.json")


# Stages


def test_a_stage_is_made_once_and_then_skipped(tmp_path):
    folder = tmp_path / "stage"
    assert not make(folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    assert sorted(before) == ["deep/data.bin", "result.json", "stage.json", "timing.json"]
    assert make(folder)
    assert before == {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    assert storage.read_manifest(folder)["stage"] == "toy"
    assert storage.seconds(folder) >= 0
    storage.check_folder(folder)


@pytest.mark.parametrize(
    ("config", "inputs", "change"),
    [
        (CONFIG | {"steps": 20}, INPUTS, "config.steps was 10, is 20"),
        (CONFIG | {"model": {"width": 8, "lr": 0.2}}, INPUTS, "config.model.lr was 0.1, is 0.2"),
        (CONFIG | {"new": "x"}, INPUTS, 'config.new was null, is "x"'),
        (CONFIG, {"split": "bb"}, 'inputs.split was "aa", is "bb"'),
    ],
)
def test_other_settings_or_inputs_are_refused_with_the_difference(tmp_path, config, inputs, change):
    folder = tmp_path / "stage"
    make(folder)
    with pytest.raises(StorageError) as error:
        make(folder, config, inputs)
    assert f"'toy' was made differently: {change}. " in str(error.value)
    assert "--restart" in str(error.value)
    assert make(folder)


def test_other_code_is_refused(tmp_path, monkeypatch):
    make(tmp_path / "stage")
    monkeypatch.setattr(storage, "code_version", lambda: "0+other")
    with pytest.raises(StorageError, match=r'code was ".*", is "0\+other"'):
        make(tmp_path / "stage")


def test_the_libraries_are_written_down_and_a_finished_stage_stays_as_it_is_under_others(tmp_path, monkeypatch):
    make(tmp_path)
    found = storage.read_manifest(tmp_path)["libraries"]
    assert set(found) == {"torch", "numpy", "scikit-learn", "pytorch-lightning"}
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    monkeypatch.setattr(storage, "library_versions", lambda: found | {"torch": "9.9"})
    assert make(tmp_path)
    with pytest.raises(StorageError, match=r'steps was 10, is 20; libraries\.torch was ".*", is "9\.9"\. .*--restart'):
        make(tmp_path, CONFIG | {"steps": 20})
    assert storage.finished_but_for(tmp_path, CONFIG, INPUTS, ["steps"]) is False


def test_what_was_begun_under_other_libraries_is_not_gone_on_with_nor_thrown_away(tmp_path, monkeypatch):
    """The last bits of a training are its torch's: half of one and half of another is the run of neither."""
    folder, here = tmp_path / "stage", storage.library_versions()
    die_in(folder)
    monkeypatch.setattr(storage, "library_versions", lambda: here | {"torch": "9.9"})
    for _ in range(2):
        with pytest.raises(StorageError, match=r"'toy' was begun under other libraries: libraries\.torch was .* --restart"):
            make(folder)
        assert (folder / "resume-0.ckpt").read_bytes() == b"progress"
    with monkeypatch.context() as installed_again:
        installed_again.setattr(storage, "library_versions", lambda: here)
        die_in(folder)
        with suppress(KeyboardInterrupt), storage.stage(folder, "toy", CONFIG, INPUTS):
            assert (folder / "resume-0.ckpt").read_bytes() == b"progress"
            raise KeyboardInterrupt
    assert not make(folder, restart=True)
    assert names(folder) == ["deep/data.bin", "result.json", "stage.json", "timing.json"]


def test_nothing_is_lost_where_nothing_can_be_taken_up_under_other_libraries(tmp_path, monkeypatch):
    folder, here = tmp_path / "stage", storage.library_versions()
    with suppress(KeyboardInterrupt), storage.stage(folder, "toy", CONFIG, INPUTS) as work:
        work.write_bytes("half.bin", b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(storage, "library_versions", lambda: here | {"torch": "9.9"})
    assert not make(folder)


def test_restart_remakes_a_changed_stage_and_skips_the_same(tmp_path):
    folder = tmp_path / "stage"
    make(folder)
    assert not make(folder, CONFIG | {"steps": 20}, restart=True, text="two")
    assert storage.read_json(folder / "result.json") == {"text": "two"}
    assert make(folder, CONFIG | {"steps": 20}, restart=True, text="three")


def test_an_unfinished_stage_keeps_its_resume_files_for_the_same_attempt(tmp_path):
    folder = tmp_path / "stage"
    die_in(folder)
    assert not (folder / "stage.json").exists()
    with storage.stage(folder, "toy", CONFIG, INPUTS) as work:
        assert not work.done
        assert names(folder) == ["resume-0.ckpt", "resume.json", "resume/cell.bin"]
        assert (folder / "resume-0.ckpt").read_bytes() == b"progress"
        work.write_bytes("whole.bin", b"whole")
    assert names(folder) == ["stage.json", "timing.json", "whole.bin"]
    assert list(storage.read_manifest(folder)["files"]) == ["whole.bin"]


def test_an_unfinished_stage_of_another_attempt_starts_anew(tmp_path):
    folder = tmp_path / "stage"
    die_in(folder)
    with storage.stage(folder, "toy", CONFIG | {"steps": 20}, INPUTS):
        assert names(folder) == ["resume.json"]


def test_a_restart_does_not_resume_from_the_finished_stage(tmp_path):
    folder = tmp_path / "stage"
    make(folder)
    die_in(folder, CONFIG | {"steps": 20}, restart=True)
    with storage.stage(folder, "toy", CONFIG, INPUTS):  # the first settings again: the second attempt isn't theirs
        assert names(folder) == ["resume.json"]


@pytest.mark.parametrize("moment", range(18))
def test_a_kill_at_any_moment_is_recovered_from(tmp_path, monkeypatch, moment):
    """Stops at the n-th change of the disk: after a change of mind, through the clearing, the writing and the commit."""
    folder = tmp_path / "stage"
    die_in(folder, CONFIG | {"steps": 20})
    left = [moment]

    def count(function):
        def counted(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", count(os.replace))
        patched.setattr(Path, "unlink", count(Path.unlink))
        patched.setattr(storage.shutil, "rmtree", count(storage.shutil.rmtree))
        with suppress(KeyboardInterrupt):
            make(folder)
    assert (left[0] < 0) == (moment < 16), "every change of the disk has its turn"
    with storage.stage(folder, "toy", CONFIG, INPUTS) as work:
        if not work.done:
            assert not set(names(folder)) & {"resume-0.ckpt", "resume/cell.bin"}, "progress of other settings"
            work.write_json("result.json", {"text": "one"})
            work.write_bytes("deep/data.bin", b"one")
    assert [name for name in names(folder) if not name.endswith(".tmp")] == [
        "deep/data.bin",
        "result.json",
        "stage.json",
        "timing.json",
    ]
    storage.check_folder(folder)


@pytest.mark.parametrize("foreign", ["notes.txt", "resume.json", "timing.json", "deep/photo.png", "a.tmp"])
def test_a_folder_with_somebody_elses_files_is_never_emptied(tmp_path, foreign):
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    for restart in (False, True):
        with pytest.raises(StorageError, match=f"holds files that synthgen didn't write \\({foreign!r}\\)"):
            make(tmp_path, restart=restart)
    assert names(tmp_path) == [foreign]


def test_a_file_put_into_a_finished_stage_survives_a_restart(tmp_path):
    make(tmp_path)
    (tmp_path / "deep" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"deep/notes\.txt"):
        make(tmp_path, CONFIG | {"steps": 20}, restart=True)
    assert (tmp_path / "deep" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": "another/1", "files": {}}'])
def test_a_manifest_of_another_tool_is_refused(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    for restart in (False, True):
        with pytest.raises(StorageError, match="not written by synthgen"):
            make(tmp_path, restart=restart)
    with pytest.raises(StorageError, match="not written by synthgen"):
        storage.folder_digest(tmp_path)
    assert names(tmp_path) == ["stage.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "stage").write_text("x")
    with pytest.raises(StorageError, match="is a file, expected a folder"):
        make(tmp_path / "stage")


def test_a_missing_or_damaged_file_of_a_finished_stage_is_named(tmp_path):
    make(tmp_path)
    path = tmp_path / "deep" / "data.bin"
    path.write_bytes(b"onE")
    with pytest.raises(StorageError, match=r"deep/data\.bin: differs from its sha256"):
        make(tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match=r"deep/data\.bin: listed in stage\.json but missing"):
        make(tmp_path)


def test_a_full_disk_leaves_the_stage_unfinished(tmp_path, monkeypatch):
    writer = storage.stage(tmp_path, "toy", CONFIG, INPUTS)
    writer.__enter__().write_bytes("data.bin", b"one")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(StorageError, match="No space left on device"):
            writer.__exit__(None, None, None)
    assert not (tmp_path / "stage.json").exists()
    assert not make(tmp_path)


def test_the_digest_of_a_folder_is_that_of_its_contents(tmp_path):
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        make(tmp_path / folder, text=text)
    a, b, c = (storage.folder_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    make(tmp_path / "d", CONFIG | {"steps": 20})
    assert storage.folder_digest(tmp_path / "d") == a, "of the results, not of the settings"
    with pytest.raises(StorageError, match=r"no stage\.json, so it is unfinished"):
        storage.folder_digest(tmp_path)


# The lock


def test_a_second_process_is_refused_with_the_holder(tmp_path):
    holder = hold(tmp_path / "run")
    try:
        with pytest.raises(StorageError, match=f"in use by process {holder.pid}; wait for it"), storage.lock(tmp_path / "run"):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with storage.lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
        make(tmp_path / "run")  # a stage in the locked folder itself leaves the lock alone
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"), storage.lock(tmp_path / "run"):
            pass


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that holds a folder."""
    code = (
        "import sys, time; from pathlib import Path; from synthgen import storage\n"
        "with storage.lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize(
    ("held", "wanted", "named"),
    [
        ("run", "run", "run"),
        ("run", "run/train/vae", "run"),
        ("run/train/vae", "run", "run"),
        ("run/gate", "run/gate", "run/gate"),
    ],
)
def test_whoever_holds_a_run_holds_its_stages(tmp_path, held, wanted, named):
    with storage.lock(tmp_path / "run"):  # as `audit` leaves it
        make(tmp_path / "run" / "split")
    holder = hold(tmp_path / held)
    try:
        said = f"{tmp_path / named}: in use by process {holder.pid}; wait for it"
        with pytest.raises(StorageError, match=re.escape(said)), storage.lock(tmp_path / wanted):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with storage.lock(tmp_path / wanted):
        pass


def test_two_stages_of_a_run_are_made_at_once(tmp_path):
    with storage.lock(tmp_path / "run"):
        make(tmp_path / "run" / "split")
    holder = hold(tmp_path / "run" / "train" / "vae")
    try:
        with storage.lock(tmp_path / "run" / "train" / "gan"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with storage.lock(tmp_path / "run"), storage.lock(tmp_path / "run" / "train" / "gan"):  # by one process
        pass


def test_a_lock_that_its_holder_removed_holds_nothing(tmp_path, monkeypatch):
    """Else who had opened it before, and who made a new one since, would hold the folder both."""
    path, asked = tmp_path / ".lock", []

    def flock(file, how):
        if how & fcntl.LOCK_EX:
            if not asked:
                path.unlink()
            asked.append(how)
        fcntl.flock(file, how)

    monkeypatch.setattr(storage, "fcntl", SimpleNamespace(**{**vars(fcntl), "flock": flock}))
    with storage.lock(tmp_path):
        assert len(asked) == 2
        assert path.read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="can't be used as an output folder"), storage.lock(tmp_path / "file"):
        pass


# The code


def test_the_code_version_is_stable_and_covers_the_models(monkeypatch):
    command = [sys.executable, "-c", "from synthgen.storage import code_version; print(code_version())"]
    found = storage.code_version()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == found
    read, seen = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: (seen.append(path.resolve()), read(path))[1])
    storage.code_version.__wrapped__()
    assert {ROOT / "models" / "vae.py", ROOT / "synthgen" / "storage.py", ROOT / "synthgen" / "gain" / "arms.py"} <= set(seen)
