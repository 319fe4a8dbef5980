"""The table of preconditionings, flow matching, guidance, held-out loss, and starting from networks of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from synthgen import models, training
from synthgen.config.generators import DiffusionConfig
from synthgen.config.schema import AugmentConfig
from synthgen.data.transforms import to_float
from synthgen.errors import CheckpointError, ConfigError
from synthgen.jobs import pretrained as files
from synthgen.models import Noise, lora
from synthgen.models.base import to_bytes
from synthgen.models.diffusion import denoising_loss
from synthgen.models.preconditioning import edm, flow
from synthgen.models.pretrained import Pretrained, of_diffusers, take_up
from synthgen.types import DatasetSpec, Silent

SPEC = DatasetSpec("x", (1, 8, 8), ("0", "1", "2"), False, "")
OBJECTIVES = ["epsilon", "v_prediction", "sample"]


def unet(channels: int = 1, classes: int | None = 3, seed: int = 1) -> UNet2DModel:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=classes,
    ).eval()  # fmt: skip


def started(trained: Pretrained, spec: DatasetSpec = SPEC, **settings):
    config = DiffusionConfig(init_from="x", **settings)
    generator = models.build(config, spec, AugmentConfig(), 0, trained.structure)
    return generator, take_up(generator, trained)


def take_and_return(trained: Pretrained, spec: DatasetSpec, **settings):
    generator = models.build(DiffusionConfig(**settings), spec, AugmentConfig(), 0, trained.structure)
    take_up(generator, trained)
    return generator


def scheduler_json(scheduler) -> dict:
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


# Preconditioning


def test_edm_keeps_the_variance_of_what_the_network_sees_and_is_asked_for():
    sigma = torch.tensor([0.01, 0.5, 20.0])
    c = edm(sigma, 0.5)
    total = sigma**2 + 0.25
    assert torch.allclose(c.into**2 * total, torch.ones(3))
    target_variance = ((1 - c.skip) ** 2 * 0.25 + c.skip**2 * sigma**2) / c.out**2
    assert torch.allclose(target_variance, torch.ones(3), atol=1e-4)


def test_flow_s_loss_is_the_squared_error_of_the_velocity(toy, toy_spec):
    config = DiffusionConfig(objective="flow", width=16, dropout=0)
    generator = models.build(config, toy_spec, AugmentConfig())
    network = generator.network.eval()
    network.unet.conv_out.weight.data.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    y, labels = to_float(torch.from_numpy(toy.images[:4])), torch.from_numpy(toy.labels[:4])
    sigma, noise = torch.tensor([0.1, 1.0, 3.0, 30.0]), torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(4, 5)
    loss = denoising_loss(network, y, sigma, noise, labels, none)
    t = (sigma / (1 + sigma))[:, None, None, None]
    x_t = (1 - t) * y + t * noise
    condition = network.label(labels) + network.augmentation(none)
    velocity = network.unet(x_t, 1000 * t.flatten(), class_labels=condition).sample
    assert torch.allclose(loss, (velocity - (noise - y)).square().flatten(1).mean(1), rtol=1e-4)
    assert torch.allclose(flow(sigma).skip, 1 - t.flatten())


@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_both_objectives_learn_one_batch_and_sample_it(objective, tiny, toy, toy_spec):
    few = toy.take(np.arange(4))
    config = DiffusionConfig(objective=objective, width=16, steps=250, lr=3e-3, dropout=0, augment=0, ema=0.98, label_dropout=0)
    generator = models.build(config, toy_spec, tiny.augment)
    training.fit(generator, [(few, 16)], steps=250, seed=0, task=objective, progress=Silent())
    made = generator.sample(torch.from_numpy(few.labels).repeat(4), Noise(0, np.arange(16)))
    distance = (made[:, None] - to_float(torch.from_numpy(few.images))[None]).square().flatten(2).mean(2)
    assert distance.min(1).values.median() < 0.05


def test_held_out_loss_falls_in_training_and_is_higher_for_other_images(tiny, toy, toy_spec):
    generator = models.build(tiny.generators.diffusion.model_copy(update={"steps": 120}), toy_spec, tiny.augment)
    images, labels = to_float(torch.from_numpy(toy.images)), torch.from_numpy(toy.labels)
    before = generator.eval().held_out_loss(images, labels)
    assert before.shape == (len(toy),)
    assert torch.equal(before, generator.held_out_loss(images, labels))
    training.fit(generator, [(toy, 16)], steps=120, seed=0, task="x", progress=Silent())
    after = generator.held_out_loss(images, labels)
    assert after.mean() < before.mean()
    static = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert generator.held_out_loss(static, labels).mean() > after.mean()


def test_guidance_within_an_interval_only_calls_the_network_twice_there(tiny, toy_spec, monkeypatch):
    generator = models.build(tiny.generators.diffusion.model_copy(update={"guidance": 2.0}), toy_spec, tiny.augment).eval()
    generator.config = generator.config.model_copy(update={"guidance_interval": (0.5, 2.0)})
    asked = []
    forward = generator.ema.network.forward
    monkeypatch.setattr(generator.ema.network, "forward", lambda x, s, *rest: asked.append(float(s[0])) or forward(x, s, *rest))
    denoise = generator.denoiser(torch.tensor([0]))
    for sigma in (0.1, 1.0, 5.0):
        denoise(torch.zeros(1, *toy_spec.image_shape), sigma)
    assert asked == pytest.approx([0.1, 1.0, 1.0, 5.0])
    with pytest.raises(ValueError, match="guidance_interval"):
        DiffusionConfig(guidance_interval=(2.0, 0.5))


@pytest.mark.parametrize("changed", [{"spacing": "angle"}, {"sigma_max": 40.0}])
def test_a_setting_that_a_scheduler_of_diffusers_would_ignore_is_refused(changed):
    with pytest.raises(ValueError, match="has no effect on sampler=diffusers_ddim, which has its own noise levels"):
        DiffusionConfig(sampler="diffusers_ddim", **changed)
    assert DiffusionConfig(sampler="diffusers_ddim").spacing == "karras"


# Networks of diffusers


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_of_diffusers_denoises_as_its_own_scheduler_says(objective):
    scheduler = DDPMScheduler(prediction_type=objective, clip_sample=False)
    theirs = unet()
    generator, start = started(of_diffusers(theirs, scheduler_json(scheduler), "x"))
    assert list(start.fresh) == ["augmentation.weight"]
    assert not start.unused
    assert start.classes == ("0", "1", "2")
    labels, x, none = (
        torch.tensor([0, 1, 2]),
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3, 5),
    )
    for timestep in (3, 500, 990):
        alpha = scheduler.alphas_cumprod[timestep]
        with torch.no_grad():
            out = theirs(x, timestep, class_labels=labels).sample
            expected = scheduler.step(out, timestep, x).pred_original_sample
            sigma = ((1 - alpha) / alpha).sqrt()
            ours = generator.network.eval()(x / alpha.sqrt(), sigma.expand(3), labels, none)
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * float(sigma.clamp(min=1))), timestep


def test_a_folder_of_diffusers_starts_training_and_comes_back_from_a_checkpoint(toy, toy_spec, tmp_path):
    DDPMPipeline(unet(3, None), DDPMScheduler()).save_pretrained(tmp_path)
    trained = files.read(tmp_path, "diffusion", Fake(toy_spec))
    assert files.digest(tmp_path) == files.digest(tmp_path)
    generator, start = started(trained, toy_spec, sampling_steps=3)
    assert any(name.startswith("unet.conv_in") for name in start.fresh) == (toy_spec.image_shape[0] != 3)
    training.fit(generator, [(toy, 8)], steps=2, seed=0, task="x", progress=Silent())
    data = to_bytes(generator)
    again = models.from_bytes(data)
    assert to_bytes(again) == data
    noise = Noise(0, np.arange(2))
    labels = torch.tensor([0, 1])
    assert torch.equal(again.sample(labels, noise), generator.sample(labels, noise))


def test_flow_matching_of_diffusers_is_taken_up_as_flow():
    trained = of_diffusers(unet(), scheduler_json(FlowMatchEulerDiscreteScheduler()), "x")
    assert trained.structure["objective"] == "flow"
    assert started(trained)[0].network.objective == "flow"


def test_what_cannot_be_taken_up_is_named(tmp_path, toy_spec):
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder"):
        files.digest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no unet/config\.json"):
        files.read(tmp_path, "diffusion", Fake(toy_spec))
    with pytest.raises(CheckpointError, match="a folder can only start a diffusion, and this is a vae"):
        files.read(tmp_path, "vae", Fake(toy_spec))
    unet().save_pretrained(tmp_path / "unet", safe_serialization=False)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler_json(DDPMScheduler())))
    with pytest.raises(CheckpointError, match="pickled weights"):
        files.read(tmp_path, "diffusion", Fake(toy_spec))
    odd = scheduler_json(DDPMScheduler()) | {"prediction_type": "flow_prediction"}
    with pytest.raises(CheckpointError, match="predicts 'flow_prediction'"):
        of_diffusers(unet(), odd, "x")
    with pytest.raises(CheckpointError, match="'KarrasVeScheduler' has no beta_schedule"):
        of_diffusers(unet(), {"_class_name": "KarrasVeScheduler"}, "x")


# Networks of ours


def ours(spec: DatasetSpec, tmp_path: Path, trained_on: str = "s", **settings) -> Path:
    generator = models.build(DiffusionConfig(width=16, attention=True, **settings), spec, AugmentConfig(), 7)
    generator.network.unet.conv_out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    generator.ema = type(generator.ema)(generator.network, (0.9,))
    path = tmp_path / "generator.safetensors"
    path.write_bytes(to_bytes(generator, trained_on))
    return path


class Fake:
    """What `read` asks of a split."""

    def __init__(self, spec: DatasetSpec, digest: str = "s", source: str = "files") -> None:
        self.spec, self.digest, self.origin = spec, digest, source


def test_other_classes_channels_and_sizes_keep_what_is_common(tmp_path):
    source = DatasetSpec("source", (3, 16, 16), ("cat", "dog", "ship"), False, "a")
    target = DatasetSpec("target", (1, 8, 8), ("dog", "frog"), False, "b")
    trained = files.read(ours(source, tmp_path), "diffusion", Fake(target))
    generator, start = started(trained, target, width=16, attention=True)
    assert start.classes == ("dog",)
    assert {name for name, why in start.fresh.items() if "there" in why} == {
        "label.weight", "unet.conv_in.weight", "unet.conv_out.weight", "unet.conv_out.bias",
    }  # fmt: skip
    rows = generator.network.label.weight
    assert torch.equal(rows[0], trained.tensors["label.weight"][1])
    assert torch.equal(rows[2], trained.tensors["label.weight"][3]), "the row of no label"
    assert torch.equal(generator.ema.network.label.weight, rows)


def test_another_objective_than_the_checkpoint_s_is_refused(tmp_path):
    trained = files.read(ours(SPEC, tmp_path, objective="flow"), "diffusion", Fake(SPEC))
    with pytest.raises(
        CheckpointError, match=r"trained with objective='flow', here it is 'edm'; give generators\.diffusion\.obj"
    ):
        started(trained, width=16, attention=True)
    assert started(trained, width=16, attention=True, objective="flow")[0].network.objective == "flow"


@pytest.mark.parametrize("kind", ["vae", "vqvae", "gan", "diffusion"])
def test_rows_of_every_label_embedding_go_by_the_class_s_name(kind, tiny, tmp_path):
    source = DatasetSpec("source", (1, 8, 8), ("a", "b"), False, "1")
    target = DatasetSpec("target", (1, 8, 8), ("b", "zebra"), False, "2")
    theirs = models.build(tiny.generators.of(kind), source, tiny.augment, 5)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(to_bytes(theirs))
    mine = models.build(tiny.generators.of(kind), target, tiny.augment, 6)
    start = take_up(mine, files.read(path, kind, Fake(target)))
    assert start.classes == ("b",)
    names = [name for name in mine.network.state_dict() if name.endswith("label.weight")]
    assert names
    for name in names:
        assert torch.equal(mine.network.state_dict()[name][0], theirs.ema.network.state_dict()[name][1])
        assert start.fresh[name] == "rows of 1 classes that aren't there"


def test_images_seen_at_another_size_or_a_generation_ago_are_remembered(tiny, tmp_path):
    """source digests are of the files, so 16 px and 32 px of the same images are the same images."""
    small = models.build(tiny.generators.vae, DatasetSpec("x", (1, 8, 8), ("a", "b"), False, "at 8 px"), tiny.augment, 5)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(to_bytes(small, "one split", "files"))
    spec = DatasetSpec("x", (1, 8, 8), ("a", "b"), False, "at 16 px")
    with pytest.raises(CheckpointError, match="another split of the same images"):
        files.read(path, "vae", Fake(spec, "another split", "files"))
    other = Fake(spec, "their split", "other files")
    between = models.build(tiny.generators.vae, spec, tiny.augment, 5)
    take_up(between, files.read(path, "vae", other))
    path.write_bytes(to_bytes(between, "their split", "other files"))
    with pytest.raises(CheckpointError, match="another split of the same images"):
        files.read(path, "vae", Fake(spec, "another split", "files"))
    assert models.from_bytes(path.read_bytes()).ancestors == (("files", "one split"),)


def test_a_checkpoint_of_another_split_of_the_same_images_is_refused(tmp_path):
    path = ours(SPEC, tmp_path, trained_on="other")
    with pytest.raises(CheckpointError, match="another split of the same images"):
        files.read(path, "diffusion", Fake(SPEC))
    with pytest.raises(CheckpointError, match="holds a diffusion, and this is a vae"):
        files.read(path, "vae", Fake(SPEC))


def test_a_checkpoint_that_hardly_fits_is_refused(tmp_path):
    trained = files.read(ours(SPEC, tmp_path), "diffusion", Fake(SPEC))
    with pytest.raises(CheckpointError, match=r"only \d+% of the network's weights fit \(.* here, .* there\); give"):
        started(trained, width=24, attention=True)


# LoRA


def test_lora_trains_little_and_leaves_a_plain_checkpoint(tmp_path, toy, toy_spec):
    trained = files.read(ours(toy_spec, tmp_path), "diffusion", Fake(toy_spec))
    generator, _ = started(trained, toy_spec, width=16, attention=True, lora_rank=2, steps=3, sampling_steps=3)
    labels, noise = torch.tensor([0, 1]), Noise(0, np.arange(2))
    before = generator.eval().sample(labels, noise)
    asked = [name for name, p in generator.network.named_parameters() if p.requires_grad]
    assert asked
    assert all("parametrizations" in name or name.startswith(("label.", "augmentation.")) for name in asked)
    frozen = generator.network.unet.conv_in.weight.clone()
    training.fit(generator, [(toy, 8)], steps=3, seed=0, task="x", progress=Silent())
    assert torch.equal(generator.network.unet.conv_in.weight, frozen)
    data = to_bytes(generator)
    again = models.from_bytes(data)
    assert not any(isinstance(module, lora.LowRank) for module in again.modules())
    after = generator.sample(labels, noise)
    assert torch.allclose(again.sample(labels, noise), after, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-6)
    torch.manual_seed(99)
    again, _ = started(trained, toy_spec, width=16, attention=True, lora_rank=2)
    torch.manual_seed(98)
    other, _ = started(trained, toy_spec, width=16, attention=True, lora_rank=2)
    for mine, theirs in zip(again.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs), "it starts as the seed says, whatever was drawn before"


def test_a_checkpoint_does_not_tell_where_its_start_lay(tmp_path, toy_spec):
    trained = files.read(ours(toy_spec, tmp_path), "diffusion", Fake(toy_spec))
    here, there = (
        to_bytes(take_and_return(trained, toy_spec, init_from=where, width=16, attention=True)) for where in ("/a/b", "/c")
    )
    assert here == there


def test_lora_without_attention_or_without_a_start_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lora_rank changes a trained network: give init_from too"):
        DiffusionConfig(lora_rank=2)
    plain = models.build(DiffusionConfig(width=16), SPEC, AugmentConfig())
    with pytest.raises(ConfigError, match="no attention"):
        lora.add(plain.network, 2)


def test_compile_is_asked_of_both_networks_and_told_in_the_sampler(tiny, toy, toy_spec, monkeypatch):
    asked = []

    def compiled(module, *_, **__):
        asked.append(module)
        module._compiled_call_impl = module._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    own = tiny.generators.diffusion.model_copy(update={"steps": 2, "compile": True})
    generator = models.build(own, toy_spec, tiny.augment)
    training.fit(generator, [(toy, 8)], steps=2, seed=0, task="x", progress=Silent())
    assert asked == [generator.network.unet]
    for _ in range(2):
        generator.sample(torch.tensor([0, 1]), Noise(0, np.arange(2)))
    assert asked == [generator.network.unet, generator.ema.network.unet], "once each"
    assert generator.sampler.endswith("compiled")
    assert models.from_bytes(to_bytes(generator)).config.compile
