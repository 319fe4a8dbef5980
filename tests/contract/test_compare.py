"""Runs side by side: what is the same, what differs, and what can't be compared."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthgen import storage
from synthgen.errors import DataError, StorageError
from synthgen.jobs.reports import compare
from synthgen.types import DatasetSpec
from tests.contract.test_gain_report import gain_report, write_run
from tests.contract.test_report import ALERT, Page, fake_run


def spec(fingerprint: str = "f" * 64, name: str = "toy") -> DatasetSpec:
    return DatasetSpec(name, (3, 8, 8), ("cat", ALERT, "dog"), False, fingerprint)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("runs") / "first"
    run = fake_run(folder, spec(), rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 60))
    config = f"name: first\nmodels: [vae, diffusion]\nsplit: {{seed: 0, train: 50}}\ndata: {{path: '{folder}/pets'}}\n"
    storage.write_text(run / "config.yaml", config)
    with storage.stage(run / "split2", "split", {}, {}) as work:
        work.write_json("x.json", 1)
    for name in ("stage.json", "timing.json"):
        shutil.copy(run / "split2" / name, run / "split" / name)
    shutil.rmtree(run / "split2")
    return run


@pytest.fixture
def runs(made, tmp_path) -> tuple[Path, Path]:
    """Two runs that differ in a setting and in their gain."""
    first, second = tmp_path / "a" / "first", tmp_path / "b" / "second"
    shutil.copytree(made, first)
    shutil.copytree(made, second)
    text = (second / "config.yaml").read_text().replace("seed: 0", "seed: 1").replace("first", "second")
    storage.write_text(second / "config.yaml", f"{text}gain: {{seeds: 20}}\n")
    report = gain_report()
    intervals = tuple(replace(i, difference=i.difference - 5, low=i.low - 5, high=i.high - 5) for i in report.intervals)
    storage.write_json(second / "gain" / "gain.json", replace(report, intervals=intervals).to_json())
    return first, second


def cells(found: dict, name: str, section: str = "") -> list[str]:
    return next(row["cells"] for row in found["rows"] if row["name"] == name and row["section"].startswith(section))


def test_the_table_holds_both_runs(runs):
    found = compare(runs, None)
    assert found["schema"] == "synthgen.compare/1"
    assert found["columns"] == ["first", "second"]
    assert all(len(row["cells"]) == 2 for row in found["rows"])
    assert cells(found, "verdict") == ["insufficient evidence"] * 2
    assert cells(found, "gain over real alone, points") == [
        "+4.00 (+2.50 to +5.50)",
        "\u22121.00 (\u22122.50 to +0.50)",
    ]
    assert cells(found, "arms compared") == ["synthetic_gated against real_mixup"] * 2
    assert cells(found, "worth in real images") == ["82", "82"]
    assert cells(found, "verdict", "gate, vae") == ["reject", "reject"]
    assert cells(found, "recall", "gate, vae") == ["0.31 (real 0.95), breaks its limit"] * 2
    assert re.fullmatch(r"\d+ of 60 \(\d+\.\d%\)", cells(found, "kept", "gate, vae")[0])
    assert cells(found, "data set") == ["toy", "toy"]
    assert cells(found, "images in train") == ["9", "9"]
    assert cells(found, "all stages added up") == ["2 min 11 s"] * 2
    assert cells(found, "train", "cost") == ["50 s"] * 2
    assert found["runs"][1]["gain"]["difference"] == pytest.approx(-1.0)
    json.dumps(found, allow_nan=False)


def test_only_settings_that_differ_are_told_and_no_folder(runs, tmp_path):
    found = compare(runs, None)
    told = {row["key"]: row["values"] for row in found["settings"]}
    assert told.pop("name") == ["first", "second"]
    assert told.pop("data.path", ["…/pets"] * 2) == ["…/pets"] * 2
    assert told == {"split.seed": [0, 1], "gain.seeds": [None, 20]}
    assert str(tmp_path) not in json.dumps(found)


def test_what_else_differs_is_noted(runs):
    first, second = runs
    assert compare(runs, None)["notes"] == ["The same data and the same split: scores stand for the same test images."]
    stage = storage.read_sealed(second / "split" / "stage.json")
    storage.write_sealed(second / "split" / "stage.json", stage | {"files": {"other": {}}, "code": "0.2.0+abc"})
    notes = compare(runs, None)["notes"]
    assert notes[0].startswith("The same data, split differently")
    assert notes[1].startswith("Made by different versions of synthgen")
    storage.write_json(second / "split" / "dataset.json", spec("0" * 64, "pets").to_json())
    assert compare(runs, None)["notes"][0].startswith(
        "Different data (first: toy (ffffffffffff); second: pets (000000000000)): each verdict stands for its own images"
    )
    shutil.rmtree(first / "split")
    assert "whether data and split are the same can't be told" in compare(runs, None)["notes"][0]


def test_a_run_without_study_stands_beside_one_with(runs, tmp_path):
    bare = tmp_path / "bare"
    storage.write_json(bare / "verdict.json", {"schema": "synthgen.verdict/1", "verdict": "reject", "reasons": []})
    from_verdict = write_run(tmp_path / "quick", gain_report())
    (from_verdict / "gain" / "gain.json").unlink()
    found = compare((runs[0], bare, from_verdict), tmp_path / "out")
    assert cells(found, "gain over real alone, points")[1] == "—"
    assert cells(found, "arms compared")[2] == "synthetic_committee against real_mixup"
    assert cells(found, "verdict", "gate, vae")[1:] == ["—", "—"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    other = tmp_path / "c" / "first"
    shutil.copytree(runs[0], other)
    assert compare((runs[0], other), None)["columns"] == ["a/first", "c/first"]


def test_the_page_stands_by_itself_and_stays_inert(runs, tmp_path):
    first, second = runs
    hostile = second.rename(second.parent / "<script>alert(1)<")
    text = (hostile / "config.yaml").read_text()
    storage.write_text(hostile / "config.yaml", text.replace("models: [vae, diffusion]", f"models: ['{ALERT}']"))
    found = compare((first, hostile), tmp_path / "out")
    assert storage.read_json(tmp_path / "out" / "compare.json") == found
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    parsed = Page(html)
    assert parsed.open == []
    assert ALERT in parsed.text
    assert len([text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]) == 2
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert {"verdict", "gains", "compared", "settings"} <= ids
    assert {a["href"].lstrip("#") for tag, a in parsed.elements if tag == "a"} <= ids
    assert all(attributes.get("scope") for tag, attributes in parsed.elements if tag == "th")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "index.html"]


def test_bad_input_is_refused_by_name(runs, tmp_path):
    first, second = runs
    with pytest.raises(DataError, match=r"needs two runs or more, and only .*first was given; name another"):
        compare((first,), None)
    with pytest.raises(DataError, match="none was given"):
        compare((), None)
    with pytest.raises(DataError, match=r"first: this run is named twice .*; name each run once"):
        compare((first, second, first.parent / "." / "first"), None)
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        compare((first, tmp_path / "nowhere"), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no verdict.json, so it isn't a finished run; run the same"):
        compare((first, tmp_path / "empty"), None)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(StorageError, match=r"site: holds files that no comparison has written"):
        compare((first, second), tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    with pytest.raises(StorageError, match=r"holds files that no comparison has written"):
        compare(runs, first)


@pytest.mark.parametrize(
    "part", ["verdict.json", "config.yaml", "split/dataset.json", "audit/report.json", "gate/vae/gate.json", "gain/gain.json"]
)
def test_a_damaged_part_is_refused_by_name(runs, part):
    (runs[1] / part).write_bytes(b"\xff[1]")
    with pytest.raises(DataError, match=r"second: .*(finish or repair|repair) this run, or leave it out"):
        compare(runs, None)
