"""The power fails after any change of any stage: what was reported is whole, and the same command finishes the rest."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from synthgen import elsewhere, storage
from synthgen.shards import manifest
from synthgen.types import Silent
from tests.faults import power, runs
from tests.faults.disk import Change, Killed, Layer
from tests.faults.figures import short_or_long


class Told(Silent):
    """Notes what a user was told to be finished."""

    def __init__(self, layer: Layer, folders: list[Path]) -> None:
        self.layer, self.folders = layer, folders

    def finish(self, task: str, line: str) -> None:
        for folder in self.folders:
            if folder.exists():
                self.layer.report(folder)


def changes_of(stage: str, out: Path) -> list[Change]:
    """Every change that a stage makes, and from where on it is reported as finished."""
    with pytest.MonkeyPatch.context() as patch:
        layer = Layer(out).mounted(patch)
        order = replace(runs.small(stage), progress=Told(layer, [out / name for name in runs.MADE[stage]]))
        with storage.lock(out):
            runs.STAGES[stage](order, out)
        for name in runs.MADE[stage]:  # the command has ended: exit code 0
            layer.report(out / name)
    return layer.log


def _loose(path: Path, data: bytes) -> None:
    with storage.loose(path.parent) as put:
        put(path.name, data)


def wrong_of(there: dict[str, bytes]) -> list[str]:
    """Finished stages and exports of which a file is missing or differs from what their manifest says."""
    found = []
    for name, data in there.items():
        folder, _, last = name.rpartition("/")
        if last == storage.STAGE_MANIFEST:
            listed = storage.entries(storage.unsealed(data.decode(), name))
        elif last == manifest.NAME:
            whole = manifest.parse(storage.unsealed(data.decode(), name), name)
            listed = {each.path: {"sha256": each.sha256} for each in manifest.everything(whole)}
        elif last == "run.json":
            listed = storage.unsealed(data.decode(), name)["files"]
        else:
            continue
        for file, entry in listed.items():
            content = there.get(f"{folder}/{file}" if folder else file, b"")
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                found.append(f"{name}: {file}")
    return found


@pytest.mark.parametrize("write", [storage.write_bytes, _loose])
def test_a_file_is_the_old_one_or_the_new_one_whenever_the_power_fails(write, tmp_path, tally):
    """And from the moment on that the write is over, the new one."""
    folder = tmp_path / "deep" / "folder"
    old, new = b"old" * 5000, b"new" * 7000
    with pytest.MonkeyPatch.context() as patch:
        layer = Layer(tmp_path).mounted(patch)
        storage.write_bytes(folder / "a.bin", old)
        layer.report(folder)
        first = len(layer.log)
        write(folder / ("a.bin" if write is storage.write_bytes else "b.bin"), new)
        layer.report(folder)
    name, lost, cases = "deep/folder/" + ("a.bin" if write is storage.write_bytes else "b.bin"), [], 0
    for made, loss, there, _ in power.crashes(power.Disk(), layer.log):
        cases += 1
        allowed = {new} if made == len(layer.log) else {old, new} if name.endswith("a.bin") else {old, new, None, b""}
        if made >= first and write is storage.write_bytes and there.get(name) not in allowed:
            lost.append(f"after change {made}, unsynced {loss}: {len(there.get(name, b''))} bytes")
        if made == len(layer.log) and there.get(name) != new:
            lost.append(f"at the end, unsynced {loss}")
    tally("cuts", cases, len(lost))
    assert cases > 20
    assert not lost, lost


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", runs.STAGES)
def test_what_was_reported_outlives_a_power_cut_and_the_rest_is_made_again(
    stage, calm, small_calm, many_checkpoints, tmp_path, tally
):
    whole = (small_calm if stage == "train" else calm).up_to(stage)
    out = runs.before(stage, calm, tmp_path / "run")
    before, log = power.Disk.of(out), changes_of(stage, out)
    final = {name: (out / name).read_bytes() for made in runs.MADE[stage] for name in names_below(out, made)}
    again = short_or_long(list(range(len(log) + 1)), 5)
    cases, promised, wrong, lost = 0, 0, [], []
    for made, loss, there, reported in power.crashes(before, log):
        at = f"{stage}, after change {made} of {len(log)}, unsynced {loss}"
        cases += 1
        wrong += [f"{at}: {each}" for each in wrong_of(there)]
        for name, data in final.items():
            if any(name == told or name.startswith(f"{told}/") for told in reported) and not storage.is_passing(Path(name).name):
                promised += 1
                lost += [f"{at}: {name}"] if there.get(name) != data else []
        if made in again and loss in ("dropped", "some"):
            place = power.put(there, tmp_path / "again")
            with storage.lock(place):
                runs.STAGES[stage](runs.small(stage), place)
            if runs.contents(place, runs.MADE[stage]) != runs.contents(whole, runs.MADE[stage]):
                wrong.append(f"{at}: made again with another result")
            shutil.rmtree(place)
    tally("power", promised, len(lost))
    tally("cuts", cases, len(wrong))
    assert promised
    assert not lost, lost[:5]
    assert not wrong, wrong[:5]


def names_below(root: Path, name: str) -> list[str]:
    place = root / name
    paths = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_copy_elsewhere_on_this_machine_outlives_a_power_cut(calm, tmp_path, tally):
    """And where a kill falls into it, the same command again makes it whole."""
    export = calm.up_to("export") / "shards"
    names, place = manifest.paths(manifest.read(export)), tmp_path / "place"
    place.mkdir()
    before = power.Disk.of(place)
    with pytest.MonkeyPatch.context() as patch:
        layer = Layer(place).mounted(patch)
        elsewhere.push(export, f"file://{place}/copy", names, manifest.listed)
    wrong, cases = [], 0
    for made, loss, there, _ in power.crashes(before, layer.log):
        cases += 1
        whole = there.get(f"copy/{manifest.NAME}") == (export / manifest.NAME).read_bytes()
        missing = [name for name in names if there.get(f"copy/{name}") != (export / name).read_bytes()]
        if (whole or made == len(layer.log)) and missing:
            wrong.append(f"after change {made} of {len(layer.log)}, unsynced {loss}: {missing[:2]}")
    for at in short_or_long(list(range(len(layer.log))), 12):
        root = tmp_path / f"killed-{at}"
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Layer(root, at, "torn").mounted(patch)
            with pytest.raises(Killed):
                elsewhere.push(export, f"file://{root}/copy", names, manifest.listed)
        cases += 1
        elsewhere.push(export, f"file://{root}/copy", names, manifest.listed)
        wrong += [f"killed at {at}: {line}" for line in manifest.problems(root / "copy", manifest.read(export))]
    tally("cuts", cases, len(wrong))
    assert not wrong, wrong[:5]
