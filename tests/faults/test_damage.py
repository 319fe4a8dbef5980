"""A byte of a finished run is changed, cut off, added or lost: `synthgen verify` names the file, no stage is built upon it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthgen import jobs, storage
from synthgen.errors import SynthgenError
from tests.faults import runs
from tests.faults.figures import LONG, short_or_long


@pytest.fixture(scope="module")
def run(calm, tmp_path_factory) -> Path:
    """A finished run, with nothing that the other suites use."""
    out = tmp_path_factory.mktemp("damage") / "run"
    shutil.copytree(calm.up_to("report"), out)
    assert jobs.verify(str(out))["problems"] == []
    return out


def files(run: Path) -> list[Path]:
    """Every file but the lock; of the hundreds of alike images a few."""
    found = sorted(path for path in run.rglob("*") if path.is_file() and not storage.is_passing(path.name))
    images = [path for path in found if path.suffix == ".png"]
    return [path for path in found if path not in images] + images[:3]


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def damages(data: bytes, draws: np.random.Generator) -> dict[str, bytes]:
    """What may happen to a file: bits flip, its end is missing, something is added, zeros are where data was."""
    count = 40 if LONG else 2
    places = {0, len(data) - 1, *draws.integers(0, len(data), count).tolist()} if data else set()
    found = {f"bit flipped at {place}": flip(data, place) for place in sorted(places)}
    if data:
        found["last byte missing"] = data[:-1]
        found["half missing"] = data[: len(data) // 2]
        found["nothing left"] = b""
        found["zeros"] = bytes(len(data))
    return found | {"a byte more": data + b"\n"}


@pytest.mark.timeout(3600)
def test_every_damaged_file_is_found(run, tally):
    draws, silent, cases = np.random.default_rng(0), [], 0
    for path in files(run):
        data = path.read_bytes()
        tried = damages(data, draws)
        for name in short_or_long(list(tried), 3):
            os.utime(path)
            path.write_bytes(tried[name])
            cases += tried[name] != data
            try:
                problems = jobs.verify(str(run))["problems"]
            except SynthgenError as error:
                problems = [str(error)]
            if tried[name] != data and not any(path.relative_to(run).as_posix() in line for line in problems):
                silent.append(f"{path.relative_to(run)}: {name}")
        path.write_bytes(data)
    tally("damage", cases, len(silent))
    assert cases > 100
    assert not silent, silent
    assert jobs.verify(str(run))["problems"] == []


def test_every_missing_and_every_extra_file_is_found(run, tally):
    silent, cases = [], 0
    for path in short_or_long([p for p in files(run) if "features-cache" not in p.parts and "gain-networks" not in p.parts], 25):
        data = path.read_bytes()
        path.unlink()
        cases += 1
        try:
            found = jobs.verify(str(run))["problems"]
        except SynthgenError as error:
            found = [str(error)]
        silent += [] if found else [f"missing {path.relative_to(run)}"]
        path.write_bytes(data)
    for name in ("shards/.MANIFEST.json.12.tmp", "split/.added.bin.12.tmp", "report/.added.tmp"):
        (run / name).write_bytes(b"x")
        cases += 1
        silent += [] if any(name in line for line in jobs.verify(str(run))["problems"]) else [f"extra {name}"]
        (run / name).unlink()
    for name in ("shards/etc", "report/etc", "split/etc"):
        (run / name).symlink_to("/etc")
        cases += 1
        silent += [] if any(name in line for line in jobs.verify(str(run))["problems"]) else [f"link {name}"]
        (run / name).unlink()
    folders = [run, *(path for path in run.iterdir() if path.is_dir() and path.name not in ("features-cache", "gain-networks"))]
    for folder in folders:
        added = folder / "added.bin"
        added.write_bytes(b"x")
        cases += 1
        silent += [] if any("added.bin" in line for line in jobs.verify(str(run))["problems"]) else [f"extra {added}"]
        added.unlink()
    tally("damage", cases, len(silent))
    assert not silent, silent


def test_a_folder_that_is_gone_is_missed(run, tally):
    """What is kept to save time alone may go: features, and the networks of the gain study."""
    folders = [path for path in run.rglob("*") if path.is_dir() and not {"features-cache", "gain-networks"} & set(path.parts)]
    silent = []
    for place in (*folders, run / "gain-networks" / "opened.json", run / "gain-networks"):
        place.rename(run.parent / "aside")
        problems = jobs.verify(str(run))["problems"]
        (run.parent / "aside").rename(place)
        silent += [] if any(place.relative_to(run).as_posix() in line for line in problems) else [str(place)]
    tally("damage", len(folders) + 2, len(silent))
    assert len(folders) > 10
    assert not silent, silent
    for place in ("features-cache", *(path.relative_to(run) for path in run.glob("gain-networks/*") if path.is_dir())):
        (run / place).rename(run.parent / "aside")
        assert jobs.verify(str(run))["problems"] == []
        (run.parent / "aside").rename(run / place)


@pytest.mark.parametrize("name", ["split/stage.json", "run.json", "gain-networks/opened.json", "shards/MANIFEST.json"])
def test_every_byte_of_a_manifest_counts(run, name, tally):
    """Those of the seal's own name as well, without which there would be none."""
    data, silent, cases = (run / name).read_bytes(), [], 0
    seal = data.index(b'"sha256": "', data.rindex(b"\n  "))
    for place in range(len(data)):
        for bit in range(8) if LONG or place >= seal - 20 else (place % 8,):
            cases += 1
            try:
                storage.unsealed((data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]).decode(), name)
            except (SynthgenError, UnicodeError):
                continue
            silent.append((place, bit))
    tally("damage", cases, len(silent))
    assert not silent, silent[:5]


@pytest.mark.parametrize(
    ("stage", "damaged"),
    [
        ("train", "features/extractor.safetensors"),
        ("generate", f"train/{runs.MODEL}/generator.safetensors"),
        ("gate", f"candidates/{runs.MODEL}/candidates.parquet"),
        ("gain", f"gate/{runs.MODEL}/scores.parquet"),
        ("gain", "split/test.parquet"),
        ("export", f"gate/{runs.MODEL}/gate.json"),
        ("export", f"candidates/{runs.MODEL}/candidates.parquet"),
    ],
)
def test_no_stage_is_built_upon_a_damaged_one(calm, tmp_path, stage, damaged, tally):
    out = runs.before(stage, calm, tmp_path / "run")
    path = out / damaged
    data = path.read_bytes()
    path.unlink()  # it is a link to the calm run's
    path.write_bytes(flip(data, len(data) // 2))
    said = ""
    try:
        runs.STAGES[stage](runs.order(), out)
    except SynthgenError as error:
        said = str(error)
    tally("damage", 1, not said)
    assert path.name in said or damaged.rpartition("/")[0] in said, said


@pytest.mark.parametrize("name", ["audit/report.json", "split/train.parquet", "split/stage.json", "split/timing.json"])
def test_a_damaged_stage_is_not_taken_for_a_finished_one(calm, tmp_path, name, tally):
    out = runs.before("features", calm, tmp_path / "run")
    path = out / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(flip(data, len(data) // 3))
    said = ""
    try:
        runs.STAGES["audit"](runs.order(), out)
    except SynthgenError as error:
        said = str(error)
    tally("damage", 1, path.name not in said)
    assert path.name in said
    assert "delete" in said


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("spoil", [_cut, lambda path: path.write_bytes(b"")])
def test_damaged_networks_of_a_study_are_trained_again(calm, tmp_path, spoil: Callable[[Path], None], tally):
    """What is kept to go on from is checked when it is read, and made again."""
    out = runs.before("export", calm, tmp_path / "run")
    expected = runs.contents(out, ["gain"])
    for path in (out / "gain-networks").rglob("*.safetensors"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        spoil(path)
    shutil.rmtree(out / "gain")
    runs.STAGES["gain"](replace(runs.order(), restart=True), out)
    found = runs.contents(out, ["gain"])
    tally("damage", 1, found.keys() != expected.keys())
    assert found.keys() == expected.keys()
