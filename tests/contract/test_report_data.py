"""report.json says what the page says; neither tells where the run lay, and both stay small whatever the run holds."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthgen import storage
from synthgen.config.load import load
from synthgen.jobs.order import Order
from synthgen.jobs.reports import make_report
from synthgen.report import charts, evidence, gate, page
from synthgen.report.portable import Portable
from synthgen.report.wording import shorten, visible
from synthgen.shards import manifest, raw
from synthgen.types import Batch, DatasetSpec, ExportFile, GateReport, Metric, Shard
from tests.contract.test_gain_report import gain_report, write_run
from tests.contract.test_report import ALERT, Page, fake_run

LONG = "a name of three hundred characters " * 9
STRANGE = "bell\x07 esc\x1b[31m nul\x00 \u202eexe.gnp \u2066 </script><img src=x onerror=alert(1)> \" ' & {{ 7*7 }}"
CLASSES = ("cat", LONG, STRANGE)


@pytest.fixture
def run(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    spec = DatasetSpec("toy", (3, 8, 8), CLASSES, False, "f" * 64)
    return fake_run(tmp_path / "run 1", spec, rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 60))


def test_the_job_writes_the_page_and_its_data(run):
    path = make_report(Order(load("digits-smoke")), run)
    data = storage.read_json(path.with_name("report.json"))
    assert data == page.make(run).data
    assert path.read_text(encoding="utf-8") == page.make(run).html
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "report.json"]


def test_the_data_hold_what_the_page_shows(run):
    data = page.make(run).data
    assert data["schema"] == "synthgen.report/1"
    assert (data["run"], data["verdict"], data["best_generator"]) == ("run 1", "insufficient evidence", "diffusion")
    text = " ".join(Page(page.build(run)).text.split())
    for line in (*data["in_words"], *data["reasons"], data["headline"], *(command["command"] for command in data["commands"])):
        assert " ".join(line.split()) in text, line
    vae = data["generators"]["vae"]
    assert [metric["name"] for metric in vae["gate"]["metrics"]] == ["fid", "recall", "kid"]
    assert vae["gate"]["metrics"][0]["real_against_real"] == pytest.approx([9.1 - 1.96 * 3.3 / 4.2, 9.1 + 1.96 * 3.3 / 4.2])
    assert vae["gate"]["metrics"][0]["share_of_limit"] == pytest.approx([0.66, 0.42, 0.92])
    assert vae["gate"]["metrics"][1]["share_of_limit"] == pytest.approx([0.64 / 0.19, 0.58 / 0.19, 0.7 / 0.19])
    assert vae["gate"]["metrics"][2]["real_against_real"] is None
    assert vae["gate"]["num_kept"] + len(_dropped(run, "vae")) == 60
    shown = vae["samples"]["cat"]["kept"][0]
    assert shown["key"].startswith("3fa9c1d2-")
    assert set(shown["signals"]) == {"support", "label", "copy"}
    assert shown["nearest"]["key"].startswith("real-")
    assert {block["reason"] for block in vae["worst"]} == {"off support", "label", "copy"}
    assert data["gain"]["curve"]["recipe"] == "real_aug"
    assert len(data["gain"]["intervals"]) == len(gain_report().intervals)
    assert data["audit"]["num_images"] == 60
    assert data["provenance"]["export"]["num_samples"] == data["generators"]["diffusion"]["gate"]["num_kept"]
    json.dumps(data, allow_nan=False)


def _dropped(run: Path, name: str) -> dict:
    return storage.read_json(run / "gate" / name / "gate.json")["dropped"]


def test_the_worst_are_the_furthest_beyond_their_threshold(run):
    table = pq.read_table(run / "gate" / "vae" / "scores.parquet").to_pydict()
    support = dict(zip(table["key"], table["support"], strict=True))
    dropped = [key for key, why in _dropped(run, "vae").items() if "off support" in why]
    block = next(b for b in page.make(run).data["generators"]["vae"]["worst"] if b["reason"] == "off support")
    assert [tile["key"] for tile in block["samples"]] == sorted(dropped, key=lambda key: -support[key])[:8]
    assert block["count"] == len(dropped)


def test_the_closest_pairs_are_the_closest_of_the_kept_and_of_the_dropped(run):
    table = pq.read_table(run / "gate" / "vae" / "scores.parquet").to_pydict()
    distance, dropped = dict(zip(table["key"], table["nearest_distance"], strict=True)), _dropped(run, "vae")
    nearest = page.make(run).data["generators"]["vae"]["nearest"]
    for mark, limit in (("kept", 12), ("dropped", 6)):
        keys = sorted((key for key in table["key"] if (key in dropped) == (mark == "dropped")), key=distance.get)
        assert [pair["sample"]["key"] for pair in nearest[mark]] == keys[:limit]
        assert [pair["distance"] for pair in nearest[mark]] == pytest.approx([distance[key] for key in keys[:limit]])


def test_nothing_tells_where_the_run_lay(run, tmp_path):
    folder = tmp_path / "secret" / "pets"
    config = f"name: x\ndata: {{source: folder, path: '{folder}'}}\ngain: {{transfer: 's3://me:word@host/there'}}\n"
    storage.write_text(run / "config.yaml", config)
    verdict = storage.read_json(run / "verdict.json")
    storage.write_json(run / "verdict.json", verdict | {"reasons": [f"{run}/gate said so", f"see {folder}/cat.png"]})
    (run / "candidates" / "vae" / "candidates.parquet").unlink()
    report = page.make(run)
    for text in (report.html, json.dumps(report.data, ensure_ascii=False)):
        assert str(tmp_path) not in text
        assert "me:word" not in text
        assert "…/pets" in text
        assert "…/run 1/gate said so" in text


def test_what_cannot_be_seen_is_written_out(run):
    report = page.make(run)
    for text in (report.html, json.dumps(report.data, ensure_ascii=False)):
        assert not any(sign in text for sign in "\x00\x07\x1b\u202e\u2066")
    parsed = Page(report.html)
    assert "bell\\x07 esc\\x1b[31m nul\\x00 \\u202eexe.gnp" in parsed.text
    assert LONG.strip() in parsed.text
    assert "49" not in parsed.text[parsed.text.index("exe.gnp") :][:80]
    assert not [attributes for tag, attributes in parsed.elements if tag == "img" or "onerror" in attributes]


def test_strange_names_of_generators_and_files_stay_inert(run, tmp_path):
    verdict, name = storage.read_json(run / "verdict.json"), ALERT.replace("/", "|") + LONG[:100]
    for stage in ("train", "candidates", "gate"):
        (run / stage / "diffusion").rename(run / stage / name)
    gates = {(name if key == "diffusion" else key): value for key, value in verdict["gate"].items()}
    storage.write_json(run / "verdict.json", verdict | {"gate": gates, "best_generator": name})
    place = run.rename(tmp_path / "<b onload=alert(1)>")
    report = page.make(place)
    parsed = Page(report.html)
    assert "b" not in {tag for tag, _ in parsed.elements}
    programs = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    assert len(programs) == 2
    assert name in report.data["generators"]
    figures = [text for attributes, text in parsed.scripts if attributes.get("type") == "application/json"]
    assert all("<" not in text for text in figures)
    assert "synthgen run '<b onload=alert(1)>/config.yaml'" in parsed.text


def test_texts_for_people():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\ud800x\u2028") == "\\ud800x\\u2028"
    assert shorten("short") == "short"
    assert len(shorten(LONG)) == 44
    assert Portable("/a/run", "").text("/a/run/x and /b") == "…/run/x and /b"
    assert Portable("", "path: /").text("a/b") == "a/b"
    assert Portable("/r", "x: [").data({"a": [float("nan"), 1.5, np.float64(2)]}) == {"a": [None, 1.5, 2.0]}


# The verdict in words


@pytest.mark.parametrize(
    ("verdict", "gate_says", "gain_says", "said"),
    [
        ("use", "accept", "use", "Training on real and synthetic images together beat"),
        ("reject", "accept", "reject", "The samples passed the gate, but real images alone do as well."),
        ("reject", "reject", "reject", "didn\u2019t pass the gate, and real images alone do as well."),
        ("reject", "reject", "use", "didn\u2019t pass the gate, whatever training on them gains."),
        ("reject", None, "reject", "Real images alone do as well."),
        ("reject", None, None, "No generator has samples that passed the gate."),
        ("insufficient evidence", "accept", "insufficient evidence", "can\u2019t be told from chance"),
        ("insufficient evidence", "insufficient evidence", "use", "whether they are good enough as a set can\u2019t be told"),
    ],
)
def test_the_verdict_is_explained(tmp_path, verdict, gate_says, gain_says, said):
    run = write_run(tmp_path / "run", replace(gain_report(), verdict=gain_says or "use"), verdict=verdict)
    if gate_says:
        report = GateReport(gate_says, (), (), (), (), (), None, {}, 0.0, 9, ("a",), {}, "x")
        storage.write_json(run / "gate" / "vae" / "gate.json", report.to_json())
    if gain_says is None:
        (run / "gain" / "gain.json").unlink()
        storage.write_json(run / "verdict.json", storage.read_json(run / "verdict.json") | {"best_generator": None})
    assert said in page.make(run).data["explained"]


def test_the_words_follow_the_figures(tmp_path, run):
    words = page.make(run).data["in_words"]
    assert words[0] == (
        "With them (real, augmentation, gated synthetic) test accuracy is 4 points above the strongest of real images alone "
        "(real, augmentation and mixup): 85.0% against 81.0%; 95% interval +2.50 to +5.50, 3 seeds."
    )
    assert any("passed the checks of single images, and as a set they keep every limit" in line for line in words)
    assert "50 real images with the synthetic ones are worth about 82 real images (at least 55)." in words
    lost = gain_report()
    intervals = tuple(replace(i, difference=-3.0, low=-4.0, high=-2.0) for i in lost.intervals)
    told = page.make(write_run(tmp_path / "lost", replace(lost, verdict="reject", intervals=intervals), verdict="reject"))
    assert any("is 3 points below the strongest" in line for line in told.data["in_words"])
    assert told.data["in_words"][-1] == "What to do: train on your real images alone (real, augmentation and mixup)."


def test_a_broken_limit_is_said_in_words(run):
    told = evidence.collect(run).generator("vae")
    assert told is not None
    assert gate.in_words(told).endswith("they show too little of the variety of real images (recall).")
    assert gate.metric_row(Metric("recall", 0.9, 0.95, -0.05, -0.1, 0.0, -1.0, 9, None, "accept", "")).share is None
    assert gate.metric_row(Metric("recall", 0.9, 0.95, -0.05, -0.1, 0.0, -1.0, 9, -0.2, "accept", "")).real == pytest.approx(
        (0.852, 1.0)  # a share ends at 1
    )


# The export


def test_the_export_is_counted_format_by_format(run):
    whole = manifest.read(run / "shards")
    first, n = whole.shards[0], whole.num_samples
    pngs = tuple(Shard(f"folder/{i}.png", "folder", 1, 100, "f" * 64) for i in range(n))
    beside = tuple(ExportFile(f"folder/{i}.json", 7, "f" * 64) for i in range(n))
    manifest.write(run / "shards", replace(whole, shards=(first, *pngs), files=beside))
    report = page.make(run)
    found = report.data["provenance"]["export"]
    assert found["formats"] == {
        "webdataset": {"files": 1, "samples": n, "bytes": first.num_bytes},
        "folder": {"files": n, "samples": n, "bytes": 100 * n},
    }
    assert found["beside"] == {"files": n, "bytes": 7 * n}
    assert "folder/3.png" not in json.dumps(report.data)
    assert "folder/49.json" not in report.html
    fact = next(fact for fact in report.data["facts"] if fact["what"] == "exported")
    assert (fact["figure"], fact["said"]) == (f"{n} samples", "all of them in each of 2 formats: webdataset, folder")


# Figures


def test_a_learning_curve_ends_at_100_per_cent():
    sizes = [charts.Size(10, 97.0, 91.0, 103.0, "train"), charts.Size(20, 99.5, 98.8, 100.2, "train")]
    figure = charts.learning(sizes, [], None, [])
    points = next(trace for trace in figure["data"] if trace.get("error_y"))
    assert points["error_y"]["array"] == pytest.approx([3.0, 0.5])
    assert points["error_y"]["arrayminus"] == pytest.approx([6.0, 0.7])
    assert figure["layout"]["yaxis"]["range"][1] == 100
    low = charts.learning([charts.Size(10, 1.0, -3.0, 5.0, "train")], [], None, [])
    assert low["layout"]["yaxis"]["range"][0] == 0


# A large run


def test_a_run_of_100_000_samples_is_a_small_page_and_little_is_read(tmp_path, monkeypatch):
    n, run = 100_000, tmp_path / "large"
    spec = DatasetSpec("toy", (3, 16, 16), tuple(f"class {i}" for i in range(10)), False, "f" * 64)
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (1000, 3, 16, 16), dtype=np.uint8), n // 1000, axis=0)
    keys = tuple(f"3fa9c1d2-{i:08d}" for i in range(n))
    labels = np.arange(n) % 10
    raw.write(run / "candidates" / "gan" / "candidates.parquet", [Batch(pixels, labels, keys)], spec)
    raw.write(
        run / "split" / "train.parquet", [Batch(pixels[:5000], labels[:5000], tuple(f"real-{k}" for k in keys[:5000]))], spec
    )
    storage.write_json(run / "split" / "dataset.json", spec.to_json())
    support = rng.random(n)
    dropped = {keys[i]: ("off support",) for i in np.flatnonzero(support > 0.6)}
    report = GateReport(
        "accept", (), (), (), (), (), None, {"support": 0.6}, 0.0, n, tuple(k for k in keys if k not in dropped), dropped, "x"
    )
    (run / "gate" / "gan").mkdir(parents=True)
    storage.write_text(run / "gate" / "gan" / "gate.json", json.dumps(report.to_json()))
    near = [f"real-{keys[i]}" for i in rng.integers(0, 5000, n)]
    table = {"key": list(keys), "support": support, "nearest": near, "nearest_distance": rng.random(n)}
    pq.write_table(pa.table(table), run / "gate" / "gan" / "scores.parquet")
    said = {"verdict": "accept", "kept": len(report.kept), "candidates": n, "dropped": {}, "reasons": []}
    about = {"schema": "synthgen.verdict/1", "verdict": "reject", "reasons": [], "best_generator": "gan", "gate": {"gan": said}}
    storage.write_json(run / "verdict.json", about)
    read = []
    pixels_of = evidence.Images.pixels
    monkeypatch.setattr(evidence.Images, "pixels", lambda self, rows: read.append(len(rows)) or pixels_of(self, rows))
    del pixels, table, report, near
    tracemalloc.start()
    made = page.make(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 100 < sum(read) < 1000
    assert len(made.html.encode()) < 10_000_000
    assert len(json.dumps(made.data)) < 1_000_000
    assert peak < 120_000_000  # keys, signals and reasons; with the pixels it would be twice their 77 MB more
    assert "100,000 candidates" in Page(made.html).text
