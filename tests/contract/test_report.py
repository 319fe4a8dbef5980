"""The report: one page from disk alone, in which no name of a class or file is ever markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthgen import storage
from synthgen.data.audit import AuditReport, Duplicates, LabelIssues, Offenders
from synthgen.errors import DataError
from synthgen.jobs.runs import summarise_arms
from synthgen.report import page
from synthgen.report.sprites import COLUMNS, sprite
from synthgen.report.wording import duration, interval, num, pct, signed
from synthgen.shards import manifest, raw
from synthgen.shards.encode import encoded
from synthgen.shards.write import Limits, write
from synthgen.types import (
    Batch,
    ClassFidelity,
    DatasetSpec,
    GateReport,
    Metric,
    Planted,
    Provenance,
    SampleInfo,
    Selection,
    ShardManifest,
)
from tests.contract.test_gain_report import gain_report

ALERT = "<script>alert(1)</script>"
SECTIONS = ["verdict", "gain", "samples", "nearest", "dropped", "gate", "training", "audit", "cost", "again"]
CLASSES = (
    ClassFidelity("cat", 20, 17, 60, {"fid": 7.25, "recall": 0.8}, {"fid": 3.5, "recall": 0.9}, ""),
    ClassFidelity(ALERT, 20, 3, 0, {}, {}, f"refused: 1 images a side of {ALERT}"),
)
PLANTED = (
    Planted("copy", "noise .05", 50, 0.94, {"copy": 0.94}),
    Planted("defect", "erased patch", 40, 0.375, {"defect": 0.35, "low-level": 0.05}),
)
SELECTION = Selection("herding", 30, 45, 0.25, 0.0123, 0.0456, 0.71, 0.72, 0.83, 0.84)
REASONS = {"off support": "support", "label": "label", "copy": "copy"}


def fake_run(
    run: Path, spec: DatasetSpec, images: np.ndarray, labels: np.ndarray, models: tuple[str, ...] = ("vae", "diffusion")
) -> Path:
    """A run folder with every part, written by the real writers; candidates are the real images with noise."""
    keys = tuple(f"real-{i:06d}" for i in range(len(images)))
    train = Batch(images, labels, keys)
    rng = np.random.default_rng(0)
    storage.write_text(run / "config.yaml", f"name: {run.name}\ndata: {{source: folder, path: '{ALERT}'}}\n")
    storage.write_json(run / "split" / "dataset.json", spec.to_json())
    raw.write(run / "split" / "train.parquet", [train], spec)
    storage.write_text(run / "split" / "test.parquet", "locked: opening this is an error")
    duplicates = Duplicates(2, 5, 1, 0, (keys[:2], keys[2:5]))
    audit = AuditReport(
        spec=spec, num_images=len(images), class_counts=dict.fromkeys(spec.class_names, 12),
        split_counts={"train": dict.fromkeys(spec.class_names, 3), "reference": {"unlabelled": 9}}, num_unused=1,
        sizes={"8x8": len(images)}, converted={"16-bit scaled": 2}, num_quarantined=1,
        quarantined={f"{ALERT}.png": "not an image"}, exact_duplicates=duplicates, near_duplicates=duplicates,
        left_out=Offenders(0, ()), constant=Offenders(0, ()),
        label_issues=LabelIssues(100, 5, 0.93, 3, keys[:3], "logistic regression on pixels"), notes=("1 group across splits",),
    )  # fmt: skip
    storage.write_json(run / "audit" / "report.json", audit.to_json())
    gates = {}
    for model in models:
        fakes = np.clip(images.astype(int) + rng.normal(0, 30, images.shape), 0, 255).astype(np.uint8)
        candidates = Batch(fakes, labels, tuple(f"3fa9c1d2-{i:08d}" for i in range(len(fakes))))
        raw.write(run / "candidates" / model / "candidates.parquet", [candidates], spec)
        losses = [[step, float(np.exp(-step / 100) + 0.2 + 0.03 * rng.random())] for step in range(1, 400, 4)]
        storage.write_json(run / "train" / model / "train.json", {"losses": {"loss": losses}, "seconds": 12.3})
        storage.write_json(run / "train" / model / "timing.json", {"seconds": 12.3})
        signals = {name: rng.random(len(fakes)) for name in REASONS.values()}
        dropped = {
            key: tuple(why for why, signal in REASONS.items() if signals[signal][i] > 0.85)
            for i, key in enumerate(candidates.keys)
            if any(signals[signal][i] > 0.85 for signal in REASONS.values())
        }
        kept = tuple(key for key in candidates.keys if key not in dropped)
        metrics = (
            Metric("fid", 12.4, 9.1, 3.3, 2.1, 4.6, 4.2, 150, 5.0, "accept", "at most the excess of a set with 30% blurred"),
            Metric("recall", 0.31, 0.95, -0.64, -0.7, -0.58, -61.0, 150, -0.19, "reject", "at least 0.8 of real against real"),
            Metric("kid", None, None, None, None, None, None, 150, None, "insufficient evidence", f"refused {ALERT}"),
        )
        report = GateReport(
            "reject" if model == "vae" else "accept", ("recall is 0.31, real against real has 0.95",),
            (f"defect_shift is 0.21 {ALERT}",), metrics, CLASSES, PLANTED, SELECTION,
            dict.fromkeys(REASONS.values(), 0.85), 0.041, len(fakes), kept, dropped, "cnn-1234/8x8",
        )  # fmt: skip
        storage.write_json(run / "gate" / model / "gate.json", report.to_json())
        near = rng.integers(0, len(images), len(fakes))
        table = {"key": list(candidates.keys), "label": labels.tolist(), **{k: v.tolist() for k, v in signals.items()}}
        table |= {"nearest": [keys[i] for i in near], "nearest_distance": rng.random(len(fakes)).tolist()}
        pq.write_table(pa.table(table), run / "gate" / model / "scores.parquet")
        counts = {"verdict": report.verdict, "reasons": list(report.reasons), "kept": len(kept)}
        gates[model] = counts | {"candidates": len(fakes), "dropped": report.reason_counts()}
    infos = [SampleInfo(models[-1], "c" * 64, 0, i, {}) for i in range(len(kept))]
    chunks = encoded([(candidates.take(np.arange(len(kept))), infos)], spec)
    shards, files = write(run / "shards", chunks, spec, ["webdataset"], Limits())
    made_by = Provenance("a" * 64, "b" * 64, {}, "0.1.0+abc", 0, "dpmpp_2m, 12 steps", 16, "cpu", {"torch": "2.13"})
    manifest.write(run / "shards", ShardManifest(spec, tuple(shards), tuple(files), len(kept), {}, "accept", "", made_by))
    gain = gain_report()
    gain = replace(gain, reasons=("too wide",), skipped={"fixmatch": ALERT}, curve=replace(gain.curve, note=ALERT))
    gain = replace(gain, controls=(replace(gain.controls[0], question=ALERT),), classes=(replace(gain.classes[1], name=ALERT),))
    storage.write_json(run / "gain" / "gain.json", gain.to_json())
    verdict = {
        "schema": "synthgen.verdict/1", "verdict": "insufficient evidence", "best_generator": models[-1],
        "reasons": ["Gated synthetic images gain +4.00 points (+2.50 to +5.50) over mixup.", ALERT],
        "arms": summarise_arms(gain), "gate": gates,
        "seconds": {"audit": 0.8, "train/vae": 9.1, "train/diffusion": 41.0, "gain": 80.2},
        "shards": "shards", "report": "report.html",
    }  # fmt: skip
    storage.write_json(run / "verdict.json", verdict)
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    spec = DatasetSpec("toy", (3, 8, 8), ("cat", ALERT, "\"'&</style>{{ 7*7 }}"), False, "f" * 64)
    return fake_run(tmp_path / "run 1", spec, rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), rng.integers(0, 3, 60))


class Page(HTMLParser):
    """Elements, their attributes, and the text of scripts and sections."""

    VOID = ("meta", "link", "br", "wbr", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text, self.open = "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif not self.open or self.open[-1] != "style":
            self.text += data


def test_every_section_is_there(run):
    parsed = Page(page.build(run))
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    assert "missing" not in ids
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert {link.lstrip("#") for link in links} <= set(ids)
    for said in (
        "There isn\u2019t enough evidence.", "+4.00 points", "recall is 0.31", "\u221261.0", "4.1% of held-out real",
        "off support", "synthgen run 'run 1/config.yaml'", "real, augmentation and mixup", "1 group across splits",
        "16-bit scaled", "real, standard augmentation", "dpmpp_2m, 12",
        "1 min 20 s", "refused", "not an image",
        "Noticed: defect_shift is 0.21", "what these checks find", "erased patch", "defect 35%, low-level 5%",
        "7.25 (3.5)", "refused: 1 images a side", "Of 45 valid candidates 30 were taken by herding, 25% of them at random",
    ):  # fmt: skip
        assert said in parsed.text, said
    tables = sum(tag == "table" for tag, _ in parsed.elements)
    assert tables == sum(tag == "caption" for tag, _ in parsed.elements) >= 7
    pictures = [attributes for _, attributes in parsed.elements if attributes.get("role") == "img"]
    assert all(attributes.get("aria-label") or attributes.get("title") for attributes in pictures)
    tiles = [attributes for attributes in pictures if "tile" in (attributes.get("class") or "")]
    assert len(tiles) > 100
    assert all(attributes.get("tabindex") == "0" for attributes in tiles)  # the keyboard reaches them without a script, too
    assert any("support 0." in (attributes["title"] or "") and ", beyond it" in attributes["title"] for attributes in tiles)


def test_hostile_names_stay_inert(run):
    html = page.build(run)
    parsed = Page(html)
    assert ALERT in parsed.text  # as text
    programs = [text for attributes, text in parsed.scripts if attributes.get("type") != "application/json"]
    assert len(programs) == 2
    assert programs[0].lstrip().startswith("/**\n* plotly.js")
    assert "alert(1)" not in programs[1]
    for attributes, text in parsed.scripts:
        if attributes.get("type") == "application/json":
            json.loads(text)
            assert "<" not in text
    assert "{{ 7*7 }}" in parsed.text  # a name isn't a template
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_a_figure_shows_markup_as_text(run):
    report = storage.read_json(run / "gain" / "gain.json")
    report["intervals"][0]["arm"] = '<a href="https://evil.example">real</a>'
    storage.write_json(run / "gain" / "gain.json", report)
    figures = [json.loads(text) for attributes, text in Page(page.build(run)).scripts if attributes.get("type")]
    names = [name for figure in figures for trace in figure["data"] if trace.get("error_x") for name in trace["y"]]
    names = [name for name in names if isinstance(name, str)]
    assert any("&lt;a href" in name for name in names)
    assert not any("<" in name for name in names)


def test_nothing_is_loaded_from_anywhere(run):
    html = page.build(run)
    parsed = Page(html)
    policy = next(
        a["content"] for tag, a in parsed.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "unsafe" not in policy
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert "style" not in attributes
    inline = {
        "script": re.findall(r"<script>(.*?)</script>", html, re.S),
        "style": re.findall(r"<style>(.*?)</style>", html, re.S),
    }
    for kind, texts in inline.items():  # what the policy doesn't name doesn't run
        allowed = next(part for part in policy.split(";") if part.strip().startswith(f"{kind}-src")).split()[1:]
        hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts}
        assert len(texts) == 2
        assert hashes <= set(allowed)
    styles = "".join(inline["style"])
    assert set(re.findall(r"url\((.{5})", styles)) == {"data:"}
    assert "@import" not in styles
    assert len(html) < 10_000_000


@pytest.mark.parametrize(
    "part",
    [
        "config.yaml",
        "split/dataset.json", "split/train.parquet", "audit/report.json", "train/vae/train.json", "gate/vae/gate.json",
        "gate/vae/scores.parquet", "candidates/vae/candidates.parquet", "gain/gain.json", "shards/MANIFEST.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_part_that_is_missing_is_said(run, part, how):
    path = run / part
    path.unlink() if how == "missing" else path.write_bytes(b"\xff[1]")
    parsed = Page(page.build(run))
    text = parsed.text[parsed.text.index("What this page couldn") :]
    assert part.removesuffix("MANIFEST.json").rstrip("/") in text
    assert str(run) not in parsed.text  # a page that is sent around tells nobody where it was made


def test_candidates_from_elsewhere_have_their_gate_table(run):
    verdict = storage.read_json(run / "verdict.json")
    storage.write_json(run / "verdict.json", verdict | {"gate": {"<b>x": verdict["gate"]["vae"]}, "best_generator": "<b>x"})
    for name in ("gate.json", "scores.parquet"):
        (run / "gate" / "vae" / name).rename(run / "gate" / name)
    for name in ("gate/vae", "gate/diffusion", "train", "candidates"):
        shutil.rmtree(run / name)
    text = Page(page.build(run)).text
    assert "they were made elsewhere" in text
    assert "recall is 0.31" in text


def test_a_bare_verdict_is_a_page(run, tmp_path):
    bare = tmp_path / "bare"
    storage.write_text(bare / "config.yaml", "name: bare\n")
    storage.write_json(bare / "verdict.json", {"schema": "synthgen.verdict/1", "verdict": "reject", "reasons": []})
    text = Page(page.build(bare)).text
    assert "Don\u2019t use these samples." in text
    assert "No gain study stands in this run." in text
    (run / "verdict.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        page.build(run)


def test_many_classes_are_counted_not_shown(tmp_path, monkeypatch):
    spec = DatasetSpec("many", (1, 40, 120), tuple(f"class {i}" for i in range(50)), False, "f")
    images = np.zeros((100, 1, 40, 120), np.uint8)
    run = fake_run(tmp_path / "many", spec, images, np.arange(100) % 50, ("gan",))
    assert "20 of 50 classes are shown" in Page(page.build(run)).text
    monkeypatch.setattr(page, "MOST_BYTES", 20_000)
    noise = np.random.default_rng(0).integers(0, 256, (100, 1, 40, 120), dtype=np.uint8)
    spec = DatasetSpec("noise", (1, 40, 120), spec.class_names, False, "f")
    html = page.build(fake_run(tmp_path / "noise", spec, noise, np.arange(100) % 50, ("gan",)))
    assert "5 of 50 classes are shown" in Page(html).text  # fewer and smaller ones where the page would be too large


def test_a_sprite_shows_each_image_in_its_window():
    images = [np.full((1, 8, 4), value, np.uint8) for value in range(COLUMNS + 2)]
    made = sprite(images)
    assert (made.width, made.height, made.pixelated) == (20, 40, True)
    assert made.position(0) == "-5px -5px"
    assert made.position(COLUMNS + 1) == "-35px -55px"
    large = sprite([np.zeros((3, 256, 512), np.uint8)])
    assert not large.pixelated
    assert large.width == 64


def test_figures_are_written_for_people():
    assert [num(1234567), num(-0.00123456), num(None), num(float("inf")), num(0.0)] == [
        "1,234,567",
        "\u22120.001235",
        "—",
        "∞",
        "0",
    ]
    assert [signed(-0.411), signed(1.0), signed(None)] == ["\u22120.41", "+1.00", "—"]
    assert [interval((-1, 2.5)), interval((None, 1.0))] == ["\u22121.00 to +2.50", "—"]
    assert [pct(0.0412), pct(None)] == ["4.1%", "—"]
    assert [duration(s) for s in (0.42, 12, 185, 7800)] == ["0.42 s", "12 s", "3 min 05 s", "2 h 10 min"]


def test_the_verdict_of_another_version_is_refused(run):
    storage.write_json(run / "verdict.json", {"schema": "synthgen.verdict/9"})
    with pytest.raises(DataError, match="schema"):
        page.build(run)


def test_arms_of_the_verdict_stand_in_for_a_missing_study(run):
    (run / "gain" / "gain.json").unlink()
    figures = [json.loads(text) for attributes, text in Page(page.build(run)).scripts if attributes.get("type")]
    assert any(trace.get("error_x") for figure in figures for trace in figure["data"])
