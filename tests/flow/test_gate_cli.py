"""`synthgen gate` on image folders of any tool: the same bytes twice, another extractor, a budget, bounds."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from synthgen import cli, storage
from synthgen.metrics import extractors
from synthgen.types import GateReport

QUICK = [
    *("features.steps=40", "features.width=8", "features.folds=2", "features.dim=16", "features.defect_steps=10"),
    *("classifier.batch_size=32", "gate.search_px=1", "gate.planted=5", "gate.splits=20", "split.reference=240"),
    *("gate.false_rejection=0.2", "gate.min_agreement=0.2"),  # judges that are hardly trained
    "workers=1",
]


class Halves(nn.Module):
    """Float RGB images to the means of their four quarters: four features."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2] // 2, x.shape[3] // 2
        quarters = (x[:, :1, :h, :w], x[:, :1, :h, w:], x[:, :1, h:, :w], x[:, :1, h:, w:])
        return torch.cat([q.mean((2, 3)) for q in quarters], 1)


def synthgen(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
    code = cli._main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Digits as image folders: real ones, and others that play the candidates; two of these are copies."""
    root, digits = tmp_path_factory.mktemp("images"), load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    for name, rows in (("real", order[:480]), ("more", order[480:700])):
        for i in rows:
            folder = root / name / f"digit {digits.target[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(digits.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{name[0]}{i}.png")
    return root / "real", root / "more"


@pytest.fixture(scope="module")
def audited(folders, tmp_path_factory) -> Path:
    """A split of the real folder, with the networks trained."""
    out = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthgen", *map(str, command(folders, out)), "--quiet"])
        assert cli._main() == 0
    return out


def command(folders: tuple[Path, Path], out: Path, *settings: str) -> list[object]:
    return ["gate", "--real", folders[0], "--candidates", folders[1], "--out", out, *QUICK, *settings]


def report_in(out: Path) -> GateReport:
    return GateReport.from_json(storage.read_json(out / "gate" / "gate.json"))


def test_two_outs_have_the_same_bytes(folders, audited, tmp_path, capsys, monkeypatch):
    code, printed, said = synthgen(capsys, monkeypatch, *command(folders, tmp_path / "again"), "--json")
    assert code == 0, said
    for name in ("gate.json", "scores.parquet"):
        assert (audited / "gate" / name).read_bytes() == (tmp_path / "again" / "gate" / name).read_bytes(), name
    report = report_in(audited)
    assert GateReport.from_json(json.loads(printed)) == report
    assert report.num_candidates == 220
    assert len(report.kept) > 110
    assert [c.name for c in report.classes] == [f"digit {i}" for i in range(10)]
    assert {p.n for p in report.planted} == {5}
    scores = pq.read_table(audited / "gate" / "scores.parquet")
    assert scores.num_rows == 220
    assert {"key", "label", *report.thresholds, "nearest", "nearest_distance", "soft_label"} == set(scores.column_names)
    assert "defect" in report.thresholds


def test_another_extractor_goes_end_to_end_and_is_named(folders, audited, tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Halves()), str(path))
    settings = ("features.extractor=torchscript", f"features.path={path}")
    code, _, said = synthgen(capsys, monkeypatch, *command(folders, tmp_path / "out", *settings), "--quiet")
    assert code == 0, said
    report, other = report_in(tmp_path / "out"), report_in(audited)
    assert report.extractor == extractors.torchscript(path).id
    assert storage.sha256_file(path) in report.extractor
    assert report.extractor != other.extractor
    for name in ("copy", "label", "low_level"):
        assert report.thresholds[name] == other.thresholds[name], "no matter of features"
    assert report.thresholds["support"] != other.thresholds["support"]
    page = synthgen(capsys, monkeypatch, *command(folders, tmp_path / "no", *settings[:1]), "--quiet")
    assert page[0] == 2
    assert "features.path=FILE.pt" in page[2]


def test_a_budget_is_filled_as_preferred(folders, audited, tmp_path, capsys, monkeypatch):
    settings = ("gate.budget=100", "gate.prefer=herding", "gate.planted=0")
    code, _, said = synthgen(
        capsys, monkeypatch, "gate", "--real", audited, *command(folders, tmp_path / "out", *settings)[3:], "--quiet"
    )
    assert code == 0, said
    report, unlimited = report_in(tmp_path / "out"), report_in(audited)
    assert len(report.kept) == 100
    assert set(report.kept) < set(unlimited.kept)
    assert report.selection is not None
    assert (report.selection.prefer, report.selection.offered) == ("herding", len(unlimited.kept))
    assert report.reason_counts()["beyond the budget"] == len(unlimited.kept) - 100


def test_a_bound_on_a_value_decides(folders, audited, tmp_path, capsys, monkeypatch):
    arguments = ("gate", "--real", audited, *command(folders, tmp_path / "out", "gate.bounds.vendi=1000", "gate.planted=0")[3:])
    code, _, said = synthgen(capsys, monkeypatch, *arguments, "--quiet", "--exit-code")
    assert code in (0, 10), said
    report = report_in(tmp_path / "out")
    assert report.verdict == "reject"
    assert any("gate.bounds.vendi: at least 1000" in reason for reason in report.reasons)
    assert report.planted == ()


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("gate.bounds.fdi=3", ("gate.bounds.fdi: no such setting", "did you mean 'gate.bounds.fid'")),
        ("gate.bounds.recall=1.5", ("gate.bounds.recall", "less than or equal to 1")),
        ("gate.prefer=best", ("gate.prefer", "'herding'")),
        ("gate.budget=0", ("gate.budget", "greater than 0")),
        ("features.path=x.pt", ("features", "extractor=inception, dinov2 or torchscript")),
    ],
)
def test_a_bad_setting_is_one_line(folders, tmp_path, capsys, monkeypatch, setting, parts):
    code, _, said = synthgen(capsys, monkeypatch, *command(folders, tmp_path / "out", setting))
    assert code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("synthgen:")]
    assert "Traceback" not in said
    for part in parts:
        assert part in line
    assert not (tmp_path / "out").exists()
