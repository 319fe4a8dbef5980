"""The Python API: instant to import, the settings of the command line in three forms, and what a finished run gives."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import synthgen as sg
from synthgen import api, cli, storage
from synthgen.config.load import load
from synthgen.data import sources
from synthgen.shards import manifest
from synthgen.types import GainReport, GateReport

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "models": ["gan"],
    "generators": {"gan": {"steps": 130}},
    "looks": {"times": 0},
    "features": {"steps": 30, "defect_steps": 0},
    "classifier": {"steps": 20},
    "gate": {"false_rejection": 0.3, "planted": 5},
    "generate": {"num": 150},
    "gain": {"arms": ["real_aug", "synthetic_gated"], "curve": False, "seeds": 2},
    "workers": 1,
}


def python(arguments: list[str], cwd: Path = ROOT) -> str:
    """What a fresh process prints, which finds this checkout and nothing else of this process's environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sg.Run:
    """The smallest run whose gate keeps something."""
    torch.set_num_threads(1)
    return sg.run("digits-smoke", QUICK, out=tmp_path_factory.mktemp("api") / "run", progress=False)


# The package


def test_importing_it_is_instant():
    listed = python(["-X", "importtime", "-c", "import synthgen"])
    own = [int(line.split("|")[0].split(":")[1]) for line in listed.splitlines() if re.search(r"\| +synthgen", line)]
    assert sum(own) < 30_000, "microseconds in files of ours"
    assert not re.search(r"\| +(torch|numpy|pydantic|synthgen\.\w+)$", listed, re.MULTILINE)


def test_the_public_names_are_there_and_no_others():
    assert set(sg.__all__) <= set(dir(sg))
    for name in sg.__all__:
        assert getattr(sg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        _ = sg.rnu


def test_gate_and_gain_are_packages_and_jobs_whoever_imports_them_first():
    code = "import synthgen as sg; import synthgen.gate.least as least; print(callable(sg.gate), sg.gate.least is least)"
    assert python(["-c", code]).split() == ["True", "True"]
    code = "import synthgen as sg; import synthgen.report.page as page; print(callable(sg.report), sg.report.page is page)"
    assert python(["-c", code]).split() == ["True", "True"]
    code = "import synthgen as sg; print(callable(sg.gain), sg.gain.__name__, hasattr(sg.gain, '__path__'))"
    assert python(["-c", code]).split() == ["True", "synthgen.gain", "True"]


def test_a_type_checker_sees_the_names_and_their_types(tmp_path):
    """mypy with the cache of the project's own check: seconds after it, most of a minute without."""
    right = """
import synthgen as sg
from torch.utils.data import DataLoader

run = sg.run("digits", "split.seed=3", {"data.path": "x"}, out="outputs/x", seed=1)
verdict: str = run.verdict
kept: tuple[str, ...] = run.gate("vae").kept
seeds: int = len({row.seed for row in run.gain.rows})
for images, labels in DataLoader(run.samples(), batch_size=8):
    print(images.shape, labels)
judged = sg.gate(real="photos", candidates="generated", gate={"budget": 100})
print(judged.verdict, sg.audit("digits").notes, sg.export("a", "b", judged="c").num_samples)
page: str = sg.report(run).name
same: bool = sg.replay("key", "shards", device="cpu").differing == 0
print(sg.drop("shards", ["key"]).num_samples, sg.compare(["a", run])["rows"], sg.verify("a")["problems"], page, same)
"""
    wrong = [
        "sg.rnu('digits')",
        "run.verdict + 1",
        "run.samples(kep=True)",
        "sg.gate('photos')",
        "sg.gain('a', 'b').verdcit",
        "sg.repaly('a', 'b')",
    ]
    client = tmp_path / "client.py"
    client.write_text(right + "\n".join(wrong) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(client)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=280
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if line.split(":")[0].endswith("client.py")}
    first = right.count("\n") + 1
    assert found == set(range(first, first + len(wrong))), done.stdout + done.stderr
    assert (ROOT / "synthgen" / "py.typed").is_file()


def test_the_jobs_take_what_the_command_line_takes():
    """Every job is here under its name, and those from folder to folder have what they all have."""
    others = set(cli.COMMANDS) & {"report", "compare", "verify", "replay", "drop"}
    assert len(others) == 5
    assert others <= set(sg.__all__)
    jobs = set(cli.COMMANDS) & {"run", "audit", "train", "generate", "gate", "export", "gain"}
    assert len(jobs) == 7
    assert jobs <= set(sg.__all__)
    for name in jobs:
        code = getattr(api, name).__code__
        assert {"overrides", "settings", "out", "restart", "progress"} <= set(code.co_varnames[: code.co_argcount + 20]), name


# Settings


def test_text_mapping_and_keywords_say_the_same():
    said = load("digits", ["split.seed=3", "gate.bounds.fid=20", "data.classes=['1','7']", "generators.vae.steps=5"])
    for given in (
        ({"split.seed": 3, "gate.bounds": {"fid": 20}, "data.classes": ["1", "7"], "generators": {"vae.steps": 5}}, {}),
        ("split.seed=3", {"gate.bounds.fid": np.float32(20), "data.classes": ("1", "7")}, {"generators": {"vae": {"steps": 5}}}),
    ):
        *overrides, last = given
        assert load("digits", api.written(overrides, last)) == said
    assert load("digits", api.written((), {"size": "tiny"})) == load("digits", ["size=tiny"])
    assert load("digits", api.written((), {"gain": "full"})).gain.study == "full"
    assert load("digits", api.written((), {"split": {"train": None}, "tracking": "off"})).split.train is None


@pytest.mark.parametrize(
    "text",
    ["a b", "it's", "a,b", "[x]", "{y: 1}", "back\\slash", "end\\", "\\'", "\\\\'", "7", "true", "null", "1e3", "ä=b", " x ", ""],
)
def test_text_arrives_as_it_is(text):
    config = load("folder", api.written([{"data.path": text or Path("x"), "data.unlabelled": text}]))
    assert config.data.unlabelled == text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([{"split.sede": 3}], "did you mean 'split.seed'"),
        ([{"split": {"sede": 3}}], "did you mean 'split.seed'"),
        ([3], "is 'KEY=VALUE' or"),
        ([{"split.seed": object()}], "a value is text, a number"),
        ([{"split.seed": "three"}], "split.seed"),
        ([{"data.path": "${oc.env:HOME}"}], "plain values"),
    ],
)
def test_a_wrong_setting_is_a_config_error_before_anything_runs(overrides, said, tmp_path):
    with pytest.raises(sg.ConfigError, match=re.escape(said)):
        sg.run("digits", *overrides, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# A finished run


def test_a_run_tells_its_verdict(run):
    assert run.verdict in ("use", "reject", "insufficient evidence")
    assert run.reasons
    assert run.report.is_file()
    assert run.generators == ("gan",)
    assert run.best_generator == "gan"
    assert set(run.arms) == {"real_aug", "synthetic_gated"}
    assert isinstance(run.gate(), GateReport)
    assert run.gate("gan") == run.gate()
    assert isinstance(run.gain, GainReport)
    assert run.config.models == ("gan",)
    assert run.shards is not None
    assert (run.shards / "MANIFEST.json").is_file()
    assert repr(run) == f"Run('{run.folder}', verdict='{run.verdict}')"
    assert sg.open(run.folder) == run
    assert pickle.loads(pickle.dumps(run)) == run


def test_a_notebook_shows_verdict_reasons_and_arms(run):
    page = run._repr_html_()
    assert run.verdict in page
    assert "synthetic_gated" in page
    assert str(run.report) in page
    assert page.count("<tr>") == 1 + len(run.arms)
    hostile = sg.Run(Path("<b>"), {**run.about, "reasons": ["<script>alert(1)</script>"]})
    assert "<script>" not in hostile._repr_html_()
    assert "<b>" not in hostile._repr_html_()


def test_samples_are_the_kept_candidates_in_their_order(run):
    kept, all_of_them = run.samples(), run.samples(kept=False)
    assert kept.keys == run.gate().kept
    assert 0 < len(kept) < len(all_of_them) == 150
    image, label = kept[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert isinstance(label, int)
    row = all_of_them.keys.index(kept.keys[0])
    assert torch.equal(all_of_them[row][0], image)
    levels = run.samples(uint8=True)
    assert levels[0][0].dtype == torch.uint8
    assert torch.equal(levels[0][0].float() / 255, image)
    assert torch.equal(kept[-1][0], kept[len(kept) - 1][0])
    assert kept.classes == tuple("0123456789")
    with pytest.raises(IndexError):
        kept[len(kept)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_every_image_with_its_label(run, num_workers):
    kept = run.samples()
    batches = list(DataLoader(kept, batch_size=16, num_workers=num_workers))
    assert torch.cat([labels for _, labels in batches]).tolist() == kept.targets.tolist()
    assert torch.equal((torch.cat([images for images, _ in batches]) * 255).round().byte(), torch.from_numpy(kept.images[:]))


def test_real_images_are_those_of_the_split(run):
    train = run.real("train", uint8=True)
    assert len(train) == run.config.split.train
    source = sources.load(run.config.data).batch
    rows = {key: row for row, key in enumerate(source.keys)}
    for i in (0, 7):
        assert np.array_equal(train[i][0].numpy(), source.images[rows[train.keys[i]]])
        assert train[i][1] == source.labels[rows[train.keys[i]]]
    assert set(run.real("reference").targets.tolist()) == {-1}


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda run: run.samples("gna"), sg.ConfigError, "did you mean 'gan'"),
        (lambda run: run.gate("vae"), sg.ConfigError, "this run has gan"),
        (lambda run: run.real("tset"), sg.ConfigError, "did you mean 'test'"),
        (lambda run: sg.open(run.folder / "split"), sg.DataError, "no verdict.json"),
    ],
)
def test_what_is_not_there_is_said(run, ask, error, said):
    with pytest.raises(error, match=said):
        ask(run)


def test_the_same_call_again_changes_nothing_and_a_changed_one_is_refused(run):
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob(storage.STAGE_MANIFEST)}
    again = sg.run("digits-smoke", QUICK, out=run.folder, progress=False)
    assert again.verdict == run.verdict
    with pytest.raises(sg.StorageError, match=r"config\.split\.seed was 0, is 1"):
        sg.run("digits-smoke", QUICK, "split.seed=1", out=run.folder, progress=False)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob(storage.STAGE_MANIFEST)} == before


# What is done with a run that is there


def test_every_byte_of_a_run_and_of_its_export_is_checked(run, tmp_path):
    assert sg.verify(run.folder)["problems"] == []
    copy = Path(shutil.copytree(run.shards, tmp_path / "shards"))
    assert sg.verify(copy) == sg.verify(str(copy))
    assert sg.verify(copy)["samples"] == len(run.samples())
    (copy / "README.md").unlink()
    assert any("README.md" in line for line in sg.verify(copy)["problems"])


def test_a_sample_is_made_again(run, tmp_path, capsys):
    key = run.samples().keys[0]
    found = sg.replay(key, run.shards, image=tmp_path / "sample.png")
    assert isinstance(found, sg.Replay)
    assert (found.key, found.differing) == (key, 0)
    assert np.array_equal(found.made, run.samples(uint8=True)[0][0].numpy())
    assert found.in_words(manifest.read(run.shards)).startswith(f"{key}: the same 64 bytes")
    assert (tmp_path / "sample.png").is_file()
    assert capsys.readouterr() == ("", "")
    with pytest.raises(sg.DataError, match="no sample 'other'"):
        sg.replay("other", run.shards)
    with pytest.raises(sg.CheckpointError, match="no such checkpoint"):
        sg.replay(key, run.shards, checkpoint=tmp_path / "none")


def test_samples_are_left_out(run, tmp_path):
    keys = run.samples().keys
    made = sg.drop(run.shards, keys[0], out=tmp_path / "less", progress=False)
    assert made.dropped == (keys[0],)
    assert made.num_samples == len(keys) - 1
    copy = Path(shutil.copytree(run.shards, tmp_path / "shards"))
    made = sg.drop(copy, keys[:2], {"export.shard_size": 5}, progress=False)
    assert made == manifest.read(tmp_path / "shards-without")
    assert len(made.shards) > 1
    with pytest.raises(sg.ConfigError, match="nothing to drop"):
        sg.drop(copy, out=tmp_path / "none", progress=False)


def test_runs_are_compared_and_a_page_is_written_again(run, tmp_path):
    other = Path(shutil.copytree(run.folder, tmp_path / "other"))
    (other / "report" / "index.html").unlink()
    page = sg.report(other, progress=False)
    assert page == other / "report" / "index.html"
    assert page.is_file()
    assert sg.report(sg.open(other), progress=False) == page
    with storage.lock(other), pytest.raises(sg.StorageError, match=f"in use by process {os.getpid()}"):
        sg.report(other, progress=False)
    found = sg.compare([run, other], out=tmp_path / "both")
    assert len(found["runs"]) == 2
    assert (tmp_path / "both" / "index.html").is_file()
    with pytest.raises(sg.DataError):
        sg.compare([run])


# The jobs one by one


def test_the_jobs_one_by_one_give_the_same(run, tmp_path, capsys):
    data = tmp_path / "run"
    rest = {key: value for key, value in QUICK.items() if key != "models"}
    report = sg.audit("digits", rest, recipe="digits-smoke", out=data, progress=False)
    assert report.num_images == 1797
    trained = sg.train(data, "gan", progress=False)
    drawn = sg.generate(trained, progress=False)
    judged = sg.gate(real=data, candidates=drawn, out=tmp_path / "judged", progress=False)
    assert judged.kept == run.gate().kept
    shards = sg.export(data, drawn, tmp_path / "judged", out=tmp_path / "shards", progress=False)
    assert shards.num_samples == len(judged.kept)
    assert capsys.readouterr() == ("", ""), "progress=False says nothing"
    measured = sg.gain(real=data, candidates=drawn, judged=tmp_path / "judged", out=tmp_path / "gain")
    assert "gain" in capsys.readouterr().err, "a line a stage"
    assert measured.gate().kept == judged.kept
    assert measured.arms["real_aug"]["test_accuracy"] == run.arms["real_aug"]["test_accuracy"]
    with pytest.raises(sg.DataError, match="made elsewhere"):
        measured.samples()
    with pytest.raises(sg.ConfigError, match="no split/ in a folder above"):
        sg.generate(tmp_path / "nowhere", progress=False)
    with pytest.raises(sg.ConfigError, match="no such generator"):
        sg.train(data, "vea", progress=False)


def test_somebody_may_watch(tmp_path):
    class Watcher:
        def __init__(self) -> None:
            self.finished: list[str] = []

        def start(self, task: str, total: int) -> None: ...

        def advance(self, task: str, steps: int = 1, note: str = "") -> None: ...

        def finish(self, task: str, line: str) -> None:
            self.finished.append(task)

    sg.audit("digits", recipe="digits-smoke", out=tmp_path / "run", progress=(watcher := Watcher()))
    assert watcher.finished == ["audit"]


def test_a_script_without_a_guard_runs_once(tmp_path):
    """Worker processes import a caller's script by default, which would start the job in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\n"
        "from synthgen import api\n"
        "from synthgen.config.load import load\n"
        "from synthgen.types import Silent\n"
        "from synthgen.workers import Pool\n"
        "print('started', flush=True)\n"
        "def job(order):\n"
        "    with Pool(2) as pool:\n"
        "        return pool.map(operator.is_, [1, 2], Silent())\n"
        "print(api.watch(load('digits'), job, progress=False))\n"
        "print(__file__)\n"
    )
    said = python([str(script)], tmp_path).splitlines()
    assert said == ["started", "[False, False]", str(script)]
