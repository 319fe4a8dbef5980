"""Every change of the disk that a stage makes, spoilt once: the same command again gives what an untroubled run gives."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from synthgen import storage
from synthgen.errors import StorageError
from tests.faults import runs
from tests.faults.disk import FAULTS, Killed, Layer
from tests.faults.figures import short_or_long

QUICK = ("audit", "generate", "select", "export")
"""Stages of which the short form tries more."""


def _do(stage: str, out: Path) -> None:
    with storage.lock(out):
        runs.STAGES[stage](runs.small(stage), out)


def _spoil(stage: str, out: Path, at: int | None, how: str) -> tuple[Layer, str]:
    """Runs a stage with a fault: the layer, and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        layer, said = Layer(out, at, how).mounted(patch), ""
        try:
            _do(stage, out)
        except Killed:
            said = "killed"
        except StorageError as error:
            said = str(error)
        gc.collect()  # files that were left open are closed while the layer stands
    return layer, said


def _finished(out: Path, stage: str) -> dict[str, str]:
    """What a stage that said nothing of a fault has made; its note for a resumption may go the next time."""
    found = runs.contents(out, runs.MADE[stage])
    return {name: digest for name, digest in found.items() if not Path(name).name.startswith(storage.RESUME)}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("stage", runs.STAGES)
def test_the_same_command_again_mends_any_fault_of_the_disk(stage, how, calm, small_calm, many_checkpoints, tmp_path, tally):
    whole = (small_calm if stage == "train" else calm).up_to(stage)
    expected, earlier = runs.contents(whole, runs.MADE[stage]), list(runs.STAGES)[: list(runs.STAGES).index(stage)]
    finished = [name for each in earlier for name in runs.MADE[each]]
    seen, _ = _spoil(stage, runs.before(stage, calm, tmp_path / "seen"), None, how)
    changes = [change for change in seen.log if change.kind != "report"]
    assert runs.contents(tmp_path / "seen", runs.MADE[stage]) == expected, "the layer changes nothing by itself"
    places = [i for i, change in enumerate(changes) if how not in ("torn", "short") or change.kind == "write"]
    assert places
    wrong, lost, kept, tried = [], [], 0, short_or_long(places, 6 if stage in QUICK else 2)
    for at in tried:
        out = runs.before(stage, calm, tmp_path / f"{at}")
        before = runs.contents(out, finished)
        layer, said = _spoil(stage, out, at, how)
        name = f"{stage}, change {at} of {len(changes)} ({changes[at].kind} {changes[at].path}), {how}: {said}"
        assert layer.hit, name
        if how in ("ENOSPC", "EIO") and said and ("can't be" not in said or str(out) not in said):
            wrong.append(f"{name}: no clear error")
        if how in ("ENOSPC", "EIO") and not said and _finished(out, stage) != expected:
            wrong.append(f"{name}: said to be done, and it isn't")
        _do(stage, out)
        if runs.contents(out, runs.MADE[stage]) != expected:
            wrong.append(name)
        kept += sum((out / file).stat().st_size for file in before)
        lost += [f"{name}: {file}" for file, digest in before.items() if runs.contents(out, [file]).get(file) != digest]
        shutil.rmtree(out)
    tally("io", len(tried), len(wrong))
    tally("bytes", kept, len(lost))
    assert not wrong, wrong
    assert not lost, lost
