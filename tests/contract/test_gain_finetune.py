"""A pre-trained transformer in the study: its last block and a head are trained, beside each other as alone; features once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from synthgen.config.load import load
from synthgen.config.schema import AugmentConfig, ClassifierConfig, GainConfig
from synthgen.data.transforms import to_float
from synthgen.gain import cells
from synthgen.gain.cells import Cell, Network, Setting, Trained, predict, train_cell
from synthgen.gain.data import why_not
from synthgen.jobs import Order, transfer
from synthgen.models.finetuned import BLOCK_LR, FineTuned, TunedNetworks
from synthgen.models.stacked import Training
from synthgen.types import Batch, DatasetSpec
from tests.conftest import blank_study

transformers = pytest.importorskip("transformers")

PAIR = (Network(0, 0), Network(1, 0))
CONFIG = ClassifierConfig(batch_size=12, steps=6, lr=4e-3, dropout=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights, as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=28
    )
    path = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(path)
    return path


@pytest.fixture
def start(folder: Path, toy_spec: DatasetSpec, tmp_path: Path) -> transfer.Start:
    split = SimpleNamespace(spec=toy_spec, folder=tmp_path / "split")
    return transfer.read(folder, Order(load("digits-smoke", ["device=cpu"])), split)


@pytest.fixture
def setting(start: transfer.Start, toy_spec: DatasetSpec) -> Setting:
    data = replace(blank_study(toy_spec, 7), pretrained=None, transformer=start.transformer, backbone=start.embed)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    data = replace(data, train=Batch(pixels, data.train.labels, data.train.keys))
    return Setting(data, CONFIG, AugmentConfig(), GainConfig(), "cpu")


def module(setting: Setting, seeds: tuple[int, ...] = (0, 1), **training: float) -> FineTuned:
    return FineTuned(setting.data.transformer, CONFIG, setting.data.spec, seeds, setting.augment, Training(**training))


# What it sees


def test_a_tuned_network_starts_with_the_extractors_features(setting, start):
    """The same resizing, normalisation and token: without a step, its features are the probe's."""
    network = module(setting).network.eval()
    images = setting.data.train.images
    with torch.no_grad():
        found = network.features(torch.stack([to_float(images)] * 2))
    assert np.allclose(found[0], start.embed(images), atol=1e-4)
    assert np.array_equal(found[0], found[1])
    colour = np.repeat(images, 3, axis=1)
    with torch.no_grad():
        assert np.allclose(network.features(torch.stack([to_float(colour)] * 2))[0], found[0], atol=1e-4)


def test_the_same_images_go_through_the_trunk_once(setting, monkeypatch):
    network, calls = module(setting).network.eval(), []
    original = TunedNetworks._trunk
    monkeypatch.setattr(TunedNetworks, "_trunk", lambda self, x: calls.append(len(x)) or original(self, x))
    images = to_float(setting.data.train.images)
    with torch.no_grad():
        shared = network(images.expand(2, *images.shape))
        assert calls == [12]
        each = network(torch.stack([images, images]))
    assert calls == [12, 12, 12]
    assert torch.equal(shared, each)


# What is trained


def test_the_last_block_the_norm_and_the_head_are_trained_and_nothing_else(setting):
    before = {name: value.clone() for name, value in module(setting).network.state_dict().items()}
    done = train_cell(Cell("transfer", 1.0, PAIR), setting, None)
    assert done.steps == 6
    assert not any(name.startswith("trunk.") for name in done.weights), "the trunk lies in its folder"
    assert all(np.array_equal(before[name], value) for name, value in before.items() if name.startswith("trunk."))
    moved = {name for name, value in done.weights.items() if not np.array_equal(value, before[name].numpy())}
    unmoved = set(done.weights) - moved
    assert {name.split(".")[0] for name in moved} == {"blocks", "norms", "head"}
    assert not {name for name in unmoved if not name.endswith("key.bias")}, "a key's bias has no gradient"
    model = setting.data.transformer.model
    fresh = module(setting).network.state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in before.items()), "nor are the folder's weights changed"
    assert not any(parameter.requires_grad for parameter in model.encoder.layer[0].parameters())


def test_what_is_pre_trained_moves_more_slowly_than_the_head(setting):
    optimizer = module(setting, lr=2.0).configure_optimizers()
    peaks = [group["max_lr"] for group in optimizer["optimizer"].param_groups]
    assert peaks == pytest.approx([BLOCK_LR * 8e-3, 8e-3]), "the dial is on both"
    trained = {id(p) for group in optimizer["optimizer"].param_groups for p in group["params"]}
    network = module(setting).network
    assert len(trained) == sum(p.requires_grad for p in network.parameters())


def test_side_by_side_equals_alone(setting):
    both = train_cell(Cell("transfer", 1.0, PAIR), setting, None)
    alone = train_cell(Cell("transfer", 1.0, PAIR[1:]), setting, None)
    assert np.allclose(both.val[1], alone.val[0], atol=1e-5)
    assert not np.allclose(both.val[0], both.val[1], atol=1e-3)
    again = train_cell(Cell("transfer", 1.0, PAIR), setting, None)
    assert np.array_equal(again.val, both.val)


def test_a_tuned_cell_predicts_the_same_from_its_bytes(setting):
    cell = Cell("transfer", 1.0, PAIR)
    done = train_cell(cell, setting, None)
    back = Trained.from_bytes(done.to_bytes())
    assert np.array_equal(predict(cell, back, setting, setting.data.val.images), done.val)


def test_tuning_learns_what_the_frozen_features_hold(setting):
    """Three classes by brightness: learnt by heart from random features."""
    labels = setting.data.train.labels
    pixels = (40 + 80 * labels)[:, None, None, None] + np.random.default_rng(0).integers(0, 30, (12, 1, 8, 8))
    train = Batch(pixels.astype(np.uint8), labels, setting.data.train.keys)
    bright = replace(
        setting,
        data=replace(setting.data, train=train, val=train),
        classifier=CONFIG.model_copy(update={"steps": 60, "lr": 2e-2}),
    )
    done = train_cell(Cell("transfer", 1.0, PAIR), bright, None)
    assert (done.val.argmax(2) == labels).mean() > 0.9


@pytest.mark.parametrize("recipe", ["transfer+synthetic", "transfer@all"])
def test_partners_and_all_labels_start_from_the_transformer_too(setting, recipe):
    done = train_cell(Cell(recipe, 0.5 if "+" in recipe else 1.0, PAIR), setting, None)
    assert any(name.startswith("blocks.") for name in done.weights)
    assert (done.num_real, done.num_synthetic) == ((12, 126) if "+" in recipe else (19, 0))


# The arms


def test_a_transformers_folder_serves_probe_and_fine_tuning(setting):
    assert why_not("transfer", setting.data) == why_not("transfer_probe", setting.data) == ""
    assert "gain.transfer=FOLDER" in why_not("transfer", replace(setting.data, transformer=None))


def test_the_note_names_the_size(start):
    assert start.note == "a transformer, images at 224 px"
    assert start.weights is None


@pytest.mark.parametrize(("name", "calls"), [("transfer_probe", 2), ("logistic_features", 2), ("transfer_probe@all", 2)])
def test_features_are_computed_once_and_not_per_seed(setting, name, calls):
    seen = []

    def embed(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32)

    counted = replace(setting, data=replace(setting.data, backbone=embed, features=embed))
    train_cell(Cell(name, 0.0, tuple(Network(seed, 0) for seed in range(4))), counted, None)
    assert len(seen) == calls, "those to learn from and those to judge by, whatever the seeds"


def test_features_of_images_are_kept_for_every_arm_and_process(folder, toy_spec, tmp_path, monkeypatch):
    split = SimpleNamespace(spec=toy_spec, folder=tmp_path / "split")
    order = Order(load("digits-smoke", ["device=cpu"]))
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    first = transfer.read(folder, order, split).embed(images)
    monkeypatch.setattr(transfer.extraction, "extract", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(transfer.read(folder, order, split).embed(images), first)
    none = Order(load("digits-smoke", ["device=cpu", "features.cache=false"]))
    with pytest.raises(BaseException, match="computed again"):
        transfer.read(folder, none, split).embed(images)


def test_another_kind_of_transformer_is_refused(folder, tmp_path, toy_spec):
    other = tmp_path / "vit"
    other.mkdir()
    about = json.loads((folder / "config.json").read_text()) | {"model_type": "vit", "architectures": ["ViTModel"]}
    (other / "config.json").write_text(json.dumps(about))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    split = SimpleNamespace(spec=toy_spec, folder=tmp_path / "split")
    with pytest.raises(Exception, match="holds a 'vit', expected dinov2"):
        transfer.read(other, Order(load("digits-smoke", ["device=cpu"])), split)


def test_large_pixels_are_predicted_in_small_pieces(setting, monkeypatch):
    sizes = []
    original = cells.stacked_probabilities
    monkeypatch.setattr(cells, "stacked_probabilities", lambda *given, **more: sizes.append(more) or original(*given, **more))
    train_cell(Cell("transfer", 1.0, PAIR), setting, None)
    train_cell(Cell("real_aug", 1.0, PAIR), setting, None)
    assert sizes == [{"chunk": 32}, {}]
