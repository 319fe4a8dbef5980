"""What every generator promises: shape, range, same seed same bytes, the label matters, it learns, it comes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen import models, sampling, training
from synthgen.config.load import load
from synthgen.errors import CheckpointError, TrainingError
from synthgen.models import MODELS, Noise, base
from synthgen.types import Batch, DatasetSpec, Silent
from tests.conftest import toy_images

KINDS = list(MODELS)


def build(tiny, kind: str, spec: DatasetSpec, seed: int = 0, **changes):
    own = getattr(tiny.generators, kind).model_copy(update=changes)
    return models.build(own, spec, tiny.augment, seed)


def trained(tiny, kind: str, toy: Batch, spec: DatasetSpec, steps: int = 4, **changes):
    generator = build(tiny, kind, spec, steps=steps, **changes)
    fit = training.fit(generator, [(toy, 16)], steps=steps, seed=0, task=kind, progress=Silent())
    return generator, fit


def draw(generator, labels, chunk=4, batch=4, seed=7, **kwargs) -> Batch:
    return Batch.concatenate(list(sampling.sample(generator, labels, seed=seed, chunk=chunk, batch=batch, prefix="x", **kwargs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 28, 28)])
def test_samples_have_the_shape_and_range_of_the_data(tiny, kind, shape):
    spec = DatasetSpec("x", shape, ("a", "b"), False, "")
    images = build(tiny, kind, spec).eval().sample(torch.tensor([0, 1, 1]), Noise(0, np.arange(3)))
    assert images.shape == (3, *shape)
    assert images.min() >= -1
    assert images.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes_whatever_is_in_flight(tiny, kind, toy, toy_spec):
    generator, _ = trained(tiny, kind, toy, toy_spec)
    labels = np.arange(10) % 3
    one = draw(generator, labels, batch=4)
    assert (draw(generator, labels, batch=16).images == one.images).all()
    assert (draw(generator, labels, batch=1).images == one.images).all()
    assert (draw(generator, labels, first=4).images == one.images[4:]).all()
    assert one.keys[3] == "x-00000003"
    assert (draw(generator, labels, seed=8).images != one.images).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_how_many_are_asked_for(tiny, kind, toy, toy_spec):
    generator, _ = trained(tiny, kind, toy, toy_spec)
    labels = np.zeros(8, dtype=np.int64)
    assert (draw(generator, labels[:4]).images == draw(generator, labels).images[:4]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_matters(tiny, kind, toy, toy_spec):
    generator, _ = trained(tiny, kind, toy, toy_spec, steps=30)
    noise = Noise(0, np.arange(4))
    as_a, as_b = (generator.sample(torch.full((4,), label), noise) for label in (0, 1))
    assert (as_a - as_b).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_fixed_by_the_seed_and_a_checkpoint_comes_back(tiny, kind, toy, toy_spec):
    first, _ = trained(tiny, kind, toy, toy_spec)
    data = base.to_bytes(first)
    assert base.to_bytes(trained(tiny, kind, toy, toy_spec)[0]) == data
    again = models.from_bytes(data)
    assert base.to_bytes(again) == data
    labels = np.arange(6) % 3
    assert (draw(again, labels).images == draw(first, labels).images).all()


@pytest.mark.parametrize(("kind", "steps"), [("vae", 150), ("diffusion", 150)])
def test_one_batch_can_be_learnt(tiny, kind, steps, toy, toy_spec):
    _, fit = trained(tiny, kind, toy.take(np.arange(4)), toy_spec, steps=steps, lr=3e-3)
    losses = [loss for _, loss in fit.losses]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2


def test_the_gan_learns_the_class_means(tiny, toy, toy_spec):
    generator, _ = trained(tiny, "gan", toy, toy_spec, steps=300, diffaugment=(), lr=1e-3, lr_discriminator=4e-3)
    labels = np.repeat([0, 1, 2], 8)
    made = draw(generator, labels).images.astype(float)
    real = np.stack([toy.images[toy.labels == label].mean(0) for label in range(3)])
    distance = np.abs(np.stack([made[labels == label].mean(0) for label in range(3)])[:, None] - real[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(3)).all(), distance


@pytest.mark.parametrize("kind", KINDS)
def test_training_resumes_bit_exactly_from_its_last_checkpoint(tiny, kind, toy, toy_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EPOCH", 3)
    whole, whole_fit = trained(tiny, kind, toy, toy_spec, steps=8)

    class Killed(Exception):
        pass

    class Kill(Silent):
        def advance(self, task, steps=1, note=""):
            object.__setattr__(self, "seen", getattr(self, "seen", 0) + steps)
            if self.seen == 7:
                raise Killed

    settings = {"steps": 8, "seed": 0, "task": kind, "folder": tmp_path, "save_every_s": 0.0}
    with pytest.raises(Killed):
        training.fit(build(tiny, kind, toy_spec, steps=8), [(toy, 16)], progress=Kill(), **settings)
    assert list(tmp_path.glob("resume-*.ckpt"))
    resumed = build(tiny, kind, toy_spec, steps=8)
    fit = training.fit(resumed, [(toy, 16)], progress=Silent(), **settings)
    assert base.to_bytes(resumed) == base.to_bytes(whole)
    assert fit.losses == whole_fit.losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_stops_the_run(tiny, kind, toy, toy_spec, monkeypatch):
    generator = build(tiny, kind, toy_spec)
    monkeypatch.setattr(type(generator), "training_step", lambda self, batch, i: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(TrainingError, match=f"{kind}: the loss is nan at step 1"):
        training.fit(generator, [(toy, 16)], steps=4, seed=0, task=kind, progress=Silent())


def test_a_damaged_or_foreign_checkpoint_is_refused(tiny, toy_spec):
    data = base.to_bytes(build(tiny, "vae", toy_spec))
    with pytest.raises(CheckpointError, match=r"here\.bin: not a synthgen checkpoint"):
        models.from_bytes(b"something else", "here.bin")
    with pytest.raises(CheckpointError, match="damaged"):
        models.from_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="holds a 'van'"):
        models.from_bytes(data.replace(b'\\"kind\\": \\"vae', b'\\"kind\\": \\"van'))


def test_guidance_of_one_equals_none_and_larger_moves_samples(tiny, toy, toy_spec):
    generator, _ = trained(tiny, "diffusion", toy, toy_spec, steps=20)
    noise, labels = Noise(0, np.arange(2)), torch.tensor([0, 1])
    plain = generator.sample(labels, noise)
    generator.config = generator.config.model_copy(update={"guidance": 3.0})
    assert (generator.sample(labels, noise) - plain).abs().max() > 1e-4
    generator.config = generator.config.model_copy(update={"guidance": 1.0, "sampler": "heun"})
    assert generator.sample(labels, noise).shape == plain.shape


def test_label_plans_are_exact():
    labels = np.array([0] * 30 + [1] * 10)
    assert np.bincount(sampling.label_plan(labels, 2, 100, "match", 0)).tolist() == [75, 25]
    assert np.bincount(sampling.label_plan(labels, 2, 101, "balanced", 0)).tolist() == [51, 50]
    assert (sampling.label_plan(labels, 2, 100, "match", 0) != sampling.label_plan(labels, 2, 100, "match", 1)).any()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_trains_and_samples_at_32_px(kind, size):
    config = load("cifar10-2k", [f"size={size}", "data.path=x", "generators.diffusion.sampling_steps=2"])
    own = getattr(config.generators, kind).model_copy(update={"steps": 1, "batch_size": 2})
    spec = DatasetSpec("x", (3, 32, 32), ("a", "b"), False, "")
    generator = models.build(own, spec, config.augment)
    training.fit(generator, [(toy_images(4, (3, 32, 32), 2), 2)], steps=1, seed=0, task=kind, progress=Silent())
    assert draw(generator, np.array([0, 1]), chunk=2).images.shape == (2, 3, 32, 32)
