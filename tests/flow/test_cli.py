"""The whole factory through the real command line, and what bad input gets: one line, its exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthgen import cli, storage
from synthgen.shards import manifest, read
from tests.faults.test_kills import Warm

QUICK_JUDGES = ["features.steps=20", "features.defect_steps=10", "classifier.steps=20", "gate.planted=5"]
FAST = [
    *(f"generators.{name}.steps=12" for name in ("vae", "gan", "diffusion")),
    "generators.diffusion.sampling_steps=4",
    *QUICK_JUDGES,
    "generate.num=100",
]


def synthgen(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "synthgen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=280)


def call(capsys, monkeypatch, *arguments: object) -> tuple[int, str]:
    """The command in this process: exit code and what it said on standard error."""
    monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
    code = cli._main()
    return code, capsys.readouterr().err


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """A finished run of `digits-smoke`, with fewer steps."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    done = synthgen("run", "digits-smoke", "--out", out, *FAST)
    assert done.returncode == 0, done.stderr
    (out / "screen.txt").write_text(done.stdout + done.stderr)
    return out


@pytest.fixture
def warm() -> Iterator[Warm]:
    server = Warm()
    yield server
    server.close()


def test_a_run_ends_with_a_verdict_shards_and_a_report(smoke):
    about = storage.read_json(smoke / "verdict.json")
    assert about["schema"] == "synthgen.verdict/1"
    assert about["verdict"] in ("use", "reject", "insufficient evidence")
    assert about["reasons"]
    assert set(about["gate"]) == {"vae", "gan", "diffusion"}
    screen = (smoke / "screen.txt").read_text()
    assert f"verdict: {about['verdict']}" in screen
    assert "report/index.html" in screen
    assert (smoke / "report" / "index.html").stat().st_size > 10_000
    for stage in ("audit", "features", "train diffusion", "generate vae", "gate gan", "select"):
        assert f" {stage} " in screen, "one line a stage"
    if about["shards"]:
        whole = manifest.verify(smoke / "shards")
        batch, _, _ = read.load(smoke / "shards")
        assert len(batch) == whole.num_samples


def test_the_same_command_again_changes_nothing_and_a_changed_one_is_refused(smoke, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob(storage.STAGE_MANIFEST)}
    code, _ = call(capsys, monkeypatch, "run", "digits-smoke", "--out", smoke, *FAST, "generate.batch=16")
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob(storage.STAGE_MANIFEST)} == before
    code, said = call(capsys, monkeypatch, "run", "digits-smoke", "--out", smoke, *FAST, "split.seed=1")
    assert code == 5
    assert "config.split.seed was 0, is 1" in said
    assert "--restart" in said
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob(storage.STAGE_MANIFEST)} == before


def test_exit_code_tells_the_verdict(smoke, capsys, monkeypatch):
    verdict = storage.read_json(smoke / "verdict.json")["verdict"]
    code, _ = call(capsys, monkeypatch, "run", "digits-smoke", "--out", smoke, "--exit-code", "--quiet", *FAST)
    assert code == {"use": 0, "reject": 10, "insufficient evidence": 11}[verdict]


def test_batch_changes_no_byte(smoke, tmp_path, capsys, monkeypatch):
    for batch in (16, 64):
        arguments = ("generate", smoke / "train" / "diffusion", "--out", tmp_path / f"b{batch}", f"generate.batch={batch}")
        code, said = call(capsys, monkeypatch, *arguments)
        assert code == 0, said
    one, other, original = (
        storage.sha256_file(folder / "candidates.parquet")
        for folder in (tmp_path / "b16", tmp_path / "b64", smoke / "candidates" / "diffusion")
    )
    assert one == other == original


def test_the_jobs_one_by_one_give_the_same_bytes(smoke, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"

    def job(*arguments: object) -> None:
        code, said = call(capsys, monkeypatch, *arguments, "--quiet")
        assert code == 0, said

    job("audit", "digits", "--recipe", "digits-smoke", "--out", run, *FAST, "workers=1")
    job("train", run, "vae")
    job("generate", run / "train" / "vae")
    assert storage.sha256_file(run / "candidates/vae/candidates.parquet") == storage.sha256_file(
        smoke / "candidates/vae/candidates.parquet"
    )
    job("gate", "--real", run, "--candidates", run / "candidates" / "vae", "--out", tmp_path / "judged")
    assert storage.read_json(tmp_path / "judged/gate/gate.json") == storage.read_json(smoke / "gate/vae/gate.json")


def test_a_run_killed_in_each_stage_completes_with_the_same_shards(tmp_path, warm):
    calm, killed, log = tmp_path / "calm", tmp_path / "killed", tmp_path / "log"
    # enough steps and an easy gate, so that there is something to export
    easy = ["models=[diffusion]", "gate.false_rejection=0.4", *QUICK_JUDGES, "generate.num=150", "workers=1"]
    assert synthgen("run", "digits-smoke", "--out", calm, *easy).returncode == 0
    command = ["run", "digits-smoke", "--out", str(killed), *easy]
    opened = storage.read_json(calm / "gain" / "opened.json")
    assert opened["split"] == "test"
    assert "networks were trained" in opened["after"]
    stages = ["audit", "train/diffusion", "candidates/diffusion", "gate/diffusion", "select", "gain", "shards", "report"]
    ends = [warm.call(command, log, signal.SIGKILL, 0.0, killed / stage) for stage in stages]
    assert ends.count(-signal.SIGKILL) >= len(stages) - 1
    assert warm.call(command, log) == 0, log.read_text()
    for part in ("candidates/diffusion", "shards"):
        assert storage.folder_digest(calm / part) == storage.folder_digest(killed / part), part
    assert storage.read_json(calm / "shards/MANIFEST.json") == storage.read_json(killed / "shards/MANIFEST.json")


# Somebody else's images


def digits_folder(root: Path, rows: np.ndarray, name: str = "x") -> Path:
    """An image folder that synthgen didn't make."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for i in rows:
        folder = root / f"digit {found.target[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(found.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{name}{i}.png")
    return root


def test_gate_and_gain_take_folders_of_any_tool(tmp_path):
    order = np.random.default_rng(0).permutation(1797)
    real, candidates = digits_folder(tmp_path / "real", order[:600]), digits_folder(tmp_path / "more", order[600:800], "y")
    out = tmp_path / "out"
    quick = [*QUICK_JUDGES, "features.width=8", "gate.search_px=1", "split.reference=200", "workers=1"]
    gated = synthgen("gate", "--real", real, "--candidates", candidates, "--out", out, *quick, "--json")
    assert gated.returncode == 0, gated.stderr
    report = json.loads(gated.stdout)
    assert report["num_candidates"] == 200
    settings = [*quick, "gain.seeds=2", "gain.tune_seeds=0", "gain.curve=false", "gain.arms=[real_aug,synthetic_gated]"]
    gained = synthgen("gain", "--real", real, "--candidates", candidates, "--out", out, *settings, "--json")
    assert gained.returncode == 0, gained.stderr
    verdict = json.loads(gained.stdout)
    assert set(verdict["arms"]) == {"real_aug", "synthetic_gated"}
    assert (out / "report" / "index.html").is_file()


def test_a_gate_of_other_candidates_is_refused(capsys, monkeypatch, tmp_path, smoke):
    for command in ("export", "gain"):
        arguments = ("--real", smoke, "--candidates", smoke / "candidates/gan", "--gate", smoke / "gate/vae")
        code, said = call(capsys, monkeypatch, command, *arguments, "--out", tmp_path / "out")
        assert code == 3
        one_line(said, "judged other candidates than these")
        assert not (tmp_path / "out").exists()


def test_a_split_that_was_changed_is_refused(capsys, monkeypatch, tmp_path):
    run = tmp_path / "run"
    assert call(capsys, monkeypatch, "audit", "digits", "--recipe", "digits-smoke", "--out", run, "--quiet")[0] == 0
    (run / "split" / "test.parquet").write_bytes((run / "split" / "train.parquet").read_bytes())
    code, said = call(capsys, monkeypatch, "train", run, "vae")
    assert code == 5
    one_line(said, "test.parquet", "differs from its sha256")


def test_somebody_elses_folder_is_not_written_to(capsys, monkeypatch, tmp_path):
    (tmp_path / "config.yaml").write_text("model: resnet50\n")
    code, said = call(capsys, monkeypatch, "audit", "digits", "--out", tmp_path)
    assert code == 5
    one_line(said, "holds files that synthgen didn't write")
    photos = images(tmp_path / "photos", {"a": 60, "b": 60})
    for out in (photos, photos / "out"):
        code, said = call(capsys, monkeypatch, "audit", photos, "--out", out)
        assert code == 5
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "photos"}
    assert {path.name for path in photos.iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    "setting",
    [
        "generators.diffusion.channel_mults=[]",
        "generators.diffusion.channel_mults=[1,1,1,1]",
        f"seed={2**70}",
        "export.formats=[webdataset,webdataset]",
        "models=[vae,vae]",
        "gain.arms=[real_agu]",
        "generate.num=10",
    ],
)
def test_bad_settings_are_a_line_not_a_defect(setting, capsys, monkeypatch, tmp_path):
    code, said = call(capsys, monkeypatch, "run", "digits-smoke", setting, "--out", tmp_path / "out")
    assert code == 2, said
    one_line(said, setting.split("=")[0].split(".")[-1])
    assert not (tmp_path / "out" / "train").exists()


# Bad input


def one_line(said: str, *parts: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("synthgen:")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    for part in parts:
        assert part in lines[0], said


def images(root: Path, counts: dict[str, int], size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_misspelt_key(capsys, monkeypatch, tmp_path):
    code, said = call(capsys, monkeypatch, "run", "digits", "gate.max_defcet=1", "--out", tmp_path / "out")
    assert code == 2
    one_line(said, "gate.max_defcet: no such setting", "did you mean 'gate.max_defect'")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder(capsys, monkeypatch, tmp_path):
    code, said = call(capsys, monkeypatch, "run", "folder", f"data.path={tmp_path}/nowhere", "--out", tmp_path / "out")
    assert code == 3
    one_line(said, "nowhere")
    assert not (tmp_path / "out").exists()


def test_an_empty_class(capsys, monkeypatch, tmp_path):
    root = images(tmp_path / "in", {"a": 30, "b": 30})
    (root / "empty one").mkdir()
    code, said = call(capsys, monkeypatch, "run", "folder", f"data.path={root}", "--out", tmp_path / "out")
    assert code == 3
    one_line(said, "empty one")
    assert not (tmp_path / "out").exists()


def test_one_class(capsys, monkeypatch, tmp_path):
    root = images(tmp_path / "in", {"only": 30})
    code, said = call(capsys, monkeypatch, "run", "folder", f"data.path={root}", "--out", tmp_path / "out")
    assert code == 3
    one_line(said, "only")
    assert not (tmp_path / "out").exists()


def test_fewer_images_than_the_metrics_need(capsys, monkeypatch, tmp_path):
    root = images(tmp_path / "in", {"a": 60, "b": 60})
    code, said = call(capsys, monkeypatch, "run", "folder", f"data.path={root}", "--out", tmp_path / "out")
    assert code == 3
    one_line(said, "split.reference: 24 images", "need 100", "split.reference=100")
    assert not (tmp_path / "out" / "train").exists()


def test_a_text_file_named_png(capsys, monkeypatch, tmp_path):
    root = images(tmp_path / "in", {"a": 30, "b": 30})
    (root / "a" / "notes.png").write_text("not a picture")
    code, said = call(capsys, monkeypatch, "run", "folder", f"data.path={root}", "--out", tmp_path / "out")
    assert code == 3
    one_line(said, "notes.png")
    assert not (tmp_path / "out").exists()


def test_a_shard_folder_without_a_manifest(capsys, monkeypatch, tmp_path, smoke):
    from synthgen.shards import raw
    from synthgen.shards.encode import encoded
    from synthgen.shards.write import Limits, write
    from synthgen.types import SampleInfo

    spec = raw.read_spec(smoke / "split" / "train.parquet")
    batch = raw.read(smoke / "split" / "train.parquet")
    infos = [SampleInfo("x", "", 0, i) for i in range(len(batch))]
    write(tmp_path / "shards", encoded([(batch, infos)], spec), spec, ["webdataset"], Limits())
    for folder in (tmp_path / "shards", tmp_path / "shards" / "webdataset"):
        code, said = call(capsys, monkeypatch, "gate", "--real", smoke, "--candidates", folder, "--out", tmp_path / "out")
        assert code == 3
        one_line(said, "MANIFEST.json")
        assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_data_set_or_split(capsys, monkeypatch, tmp_path, smoke):
    root = images(tmp_path / "in", {"a": 60, "b": 60})
    code, said = call(capsys, monkeypatch, "audit", root, "--out", tmp_path / "other", "--quiet")
    assert code == 0, said
    checkpoint = smoke / "train" / "vae"
    code, said = call(capsys, monkeypatch, "generate", checkpoint, "--real", tmp_path / "other", "--out", tmp_path / "out")
    assert code == 4
    one_line(said, "trained on another data set")
    code, said = call(
        capsys, monkeypatch, "audit", "digits", "--recipe", "digits-smoke", "split.seed=3", "--out", tmp_path / "again", "--quiet"
    )
    assert code == 0, said
    code, said = call(capsys, monkeypatch, "generate", checkpoint, "--real", tmp_path / "again", "--out", tmp_path / "out")
    assert code == 4
    one_line(said, "another split")
    assert not (tmp_path / "out").exists()


def test_a_recipe_and_a_generator_that_do_not_exist(capsys, monkeypatch, smoke):
    assert call(capsys, monkeypatch, "run", "digit")[0] == 2
    code, said = call(capsys, monkeypatch, "train", smoke, "difusion")
    assert code == 2
    one_line(said, "did you mean 'diffusion'")


def test_the_output_folder_is_in_use(capsys, monkeypatch, tmp_path):
    with storage.lock(tmp_path / "out"):
        done = synthgen("run", "digits-smoke", "--out", tmp_path / "out")
    assert done.returncode == 5
    one_line(done.stderr, f"in use by process {os.getpid()}")


# Help


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys; sys.argv = ['synthgen', '--help']\nfrom synthgen import cli\ncli._main()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_explains_its_options_and_settings(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["synthgen", command, "--help"])
    assert cli._main() == 0
    text = capsys.readouterr().out
    assert "--debug" in text
    if cli.COMMANDS[command][1]:
        assert "Settings" in text
        assert "=" in text
