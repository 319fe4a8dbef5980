"""Training through the command line: looks, starting from a trained network, every kind, plans of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from synthgen import storage
from synthgen.shards import raw
from tests.flow.test_cli import QUICK_JUDGES, call

FEW = ["generators.diffusion.sampling_steps=3", "looks.num=60", "generate.num=100", *QUICK_JUDGES, "workers=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of `audit`."""
    out = tmp_path_factory.mktemp("train") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["synthgen", "audit", "digits", "--recipe", "digits-smoke", "--out", str(out), *FEW])
        from synthgen import cli

        assert cli._main() == 0
    return out


def test_looks_are_written_down_and_a_finished_stage_is_not_made_again(data, tmp_path, capsys, monkeypatch):
    arguments = ("train", data, "vae", "--out", tmp_path / "vae", "generators.vae.steps=8", "looks.times=2", *FEW)
    code, said = call(capsys, monkeypatch, *arguments)
    assert code == 0, said
    about = storage.read_json(tmp_path / "vae" / "train.json")
    assert [look["step"] for look in about["looks"]] == [4, 8]
    assert {"fid", "recall", "copy_share", "held_out_loss"} <= set(about["looks"][0])
    assert about["step"] in (4, 8)
    assert about["look_seconds"] > 0
    assert (data / "features" / storage.STAGE_MANIFEST).is_file()
    before = (tmp_path / "vae" / storage.STAGE_MANIFEST).stat().st_mtime_ns
    assert call(capsys, monkeypatch, *arguments)[0] == 0
    assert (tmp_path / "vae" / storage.STAGE_MANIFEST).stat().st_mtime_ns == before


def test_a_folder_of_diffusers_starts_a_diffusion_and_what_fits_is_listed(data, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "theirs")
    own = ["generators.diffusion.steps=2", f"generators.diffusion.init_from={tmp_path / 'theirs'}", "looks.times=0", *FEW]
    code, said = call(capsys, monkeypatch, "train", data, "diffusion", "--out", tmp_path / "ours", *own)
    assert code == 0, said
    start = storage.read_json(tmp_path / "ours" / "train.json")["start"]
    assert start["fresh"]["unet.conv_in.weight"] == "(16, 1, 3, 3) here, (16, 3, 3, 3) there"
    assert start["loaded"] > 50
    code, said = call(capsys, monkeypatch, "generate", tmp_path / "ours", "--real", data, "--out", tmp_path / "made", *FEW)
    assert code == 0, said
    assert len(raw.read(tmp_path / "made" / "candidates.parquet")) == 100


def test_a_start_that_is_not_there_or_saw_another_split_is_one_line(data, tmp_path, capsys, monkeypatch):
    code, said = call(
        capsys, monkeypatch, "train", data, "vae", "--out", tmp_path / "a", "generators.vae.init_from=nowhere", *FEW
    )
    assert code != 0
    assert "init_from: nowhere: no such file or folder" in said
    assert "Traceback" not in said
    other = tmp_path / "other"
    assert call(capsys, monkeypatch, "audit", "digits", "--recipe", "digits-smoke", "--out", other, "split.seed=1", *FEW)[0] == 0
    quick = ["generators.vae.steps=2", "looks.times=0", *FEW]
    assert call(capsys, monkeypatch, "train", other, "vae", *quick)[0] == 0
    start = f"generators.vae.init_from={other / 'train' / 'vae'}"
    code, said = call(capsys, monkeypatch, "train", data, "vae", "--out", tmp_path / "b", start, *quick)
    assert code != 0
    assert "trained on another split of the same images" in said


def test_a_vqvae_is_trained_and_a_plan_fills_classes_up(data, tmp_path, capsys, monkeypatch):
    own = ["generators.vqvae.steps=6", "looks.times=0", *FEW]
    code, said = call(capsys, monkeypatch, "train", data, "vqvae", "--out", tmp_path / "vqvae", *own)
    assert code == 0, said
    plan = ["generate.labels=fill", "generate.fill_to=9"]
    made = tmp_path / "made"
    code, said = call(capsys, monkeypatch, "generate", tmp_path / "vqvae", "--real", data, "--out", made, *plan, *FEW)
    assert code == 0, said
    real = raw.read(data / "split" / "train.parquet")
    drawn = raw.read(made / "candidates.parquet")
    both = np.bincount(real.labels, minlength=10) + np.bincount(drawn.labels, minlength=10)
    assert (both == 9).all()


def test_a_plan_by_weakness_reads_the_judges(data, tmp_path, capsys, monkeypatch):
    own = ["generators.vae.steps=2", "looks.times=2", *FEW]
    assert call(capsys, monkeypatch, "train", data, "vae", *own)[0] == 0
    made = tmp_path / "made"
    arguments = ("generate", data / "train" / "vae", "--out", made, "generate.labels=weak", *FEW)
    code, said = call(capsys, monkeypatch, *arguments)
    assert code == 0, said
    counts = np.bincount(raw.read(made / "candidates.parquet").labels, minlength=10)
    assert counts.sum() == 100
    assert counts.min() >= 1
