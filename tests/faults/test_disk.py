"""Disks that are full, too small, read-only, another one than the temporary files'; limits of the shell: a line, and no loss."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthgen import cli, jobs, storage
from tests.faults import runs
from tests.faults.disk import Layer

RUN = ["run", "digits-smoke", *runs.SMALLEST, "generators.diffusion.steps=6", "generate.num=120"]


def call(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    """The command in this process: exit code and what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
    code = cli._main()
    return code, capsys.readouterr().err


def is_clear(said: str) -> bool:
    """One line that names a place and says what to do."""
    last = said.strip().splitlines()[-1]
    return (
        last.startswith("synthgen: /") and ("choose" in last or "see that" in last) and "defect" not in last and len(last) < 600
    )


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a disk of 1 MB needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_of_1_mb_is_full_in_one_line_and_the_run_goes_on_when_there_is_room(small_disk, capsys, monkeypatch, tally):
    code, said = call(capsys, monkeypatch, *RUN, "--out", small_disk / "run")
    whole = [path.parent for path in small_disk.rglob("stage.json")]
    for folder in whole:
        storage.check_folder(folder)
    left = list(small_disk.rglob("*.tmp"))
    bad = code != 5 or not is_clear(said) or not whole or bool(left)
    tally("disk", 1, bad)
    assert not bad, (code, said, whole, left)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, said = call(capsys, monkeypatch, *RUN, "--out", small_disk / "run")
    tally("disk", 1, code != 0)
    assert code == 0, said
    assert jobs.verify(str(small_disk / "run"))["problems"] == []


def test_a_read_only_disk_is_one_line_and_a_finished_run_on_it_can_be_read(small_disk, calm, capsys, monkeypatch, tally):
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    storage.write_text(small_disk / "full" / "note.txt", "x")
    subprocess.run(["cp", "-r", str(calm.up_to("report")), str(small_disk / "run")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, said = call(capsys, monkeypatch, *RUN, "--out", small_disk / "new")
    tally("disk", 1, code != 5 or not is_clear(said))
    assert code == 5, said
    assert is_clear(said), said
    assert jobs.verify(str(small_disk / "run"))["problems"] == []


@pytest.mark.parametrize("limit", [4_096, 20_000])
def test_a_limit_on_the_size_of_files_is_one_line_and_no_loss(limit, tmp_path, tally):
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "synthgen", "audit", "digits", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, env=environment)
    left = list(tmp_path.rglob("*.tmp"))
    bad = done.returncode != 5 or not is_clear(done.stderr) or bool(left)
    tally("disk", 1, bad)
    assert not bad, (done.returncode, done.stderr, left)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert jobs.verify(str(tmp_path / "run"))["problems"] == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second disk")
def test_temporary_files_on_another_disk_do_not_matter(tmp_path, monkeypatch, capsys, tally):
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    assert os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev
    code, said = call(capsys, monkeypatch, "audit", "digits", "--out", tmp_path / "run")
    tally("disk", 1, code != 0)
    assert code == 0, said


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EIO, errno.ENAMETOOLONG])
@pytest.mark.parametrize("stage", ["audit", "generate", "export"])
def test_a_disk_that_refuses_is_one_line_and_what_was_finished_stays(stage, number, calm, tmp_path, tally):
    out = runs.before(stage, calm, tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        Refusing(out, number).mounted(patch)
        with pytest.raises(storage.StorageError) as raised:
            runs.STAGES[stage](runs.small(stage), out)
    said = str(raised.value)
    clear = str(out) in said and os.strerror(number) in said and "choose another --out" in said
    lost = [path for path, data in before.items() if path.read_bytes() != data]
    tally("disk", 1, bool(lost) or not clear)
    assert clear, said
    assert not lost
    runs.STAGES[stage](runs.small(stage), out)


class Refusing(Layer):
    """Nothing can be created."""

    def __init__(self, root: Path, number: int) -> None:
        super().__init__(root)
        self.number = number

    def change(self, made, do, torn=None):
        if made.kind in ("create", "write", "mkdir"):
            raise OSError(self.number, os.strerror(self.number), made.path)
        return super().change(made, do, torn)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/synthgen-here", "dangling", "loop"])
def test_a_place_that_is_no_folder_is_one_line(place, tmp_path, monkeypatch, capsys, tally):
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, said = call(capsys, monkeypatch, "audit", "digits", "--out", tmp_path / place)
    fine = code == 5 and is_clear(said)
    tally("disk", 1, not fine)
    assert fine, (code, said)
    assert (tmp_path / "file").read_text() == "somebody's"
