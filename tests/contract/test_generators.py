"""What every generator promises (synthgen.testing has the checks), and what each of the built-in ones learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen import models, sampling, testing, training
from synthgen.config.load import load
from synthgen.errors import CheckpointError
from synthgen.models import MODELS, Noise, base
from synthgen.types import Batch, DatasetSpec, Silent
from tests.conftest import toy_images

KINDS = list(MODELS)
LABEL_STEPS = {"vqvae": 250}
"""Training steps until the label matters, where 30 are too few: the prior only trains after the codes, which are discrete."""


def build(tiny, kind: str, spec: DatasetSpec, seed: int = 0, **changes):
    own = getattr(tiny.generators, kind).model_copy(update=changes)
    return models.build(own, spec, tiny.augment, seed)


def trained(tiny, kind: str, toy: Batch, spec: DatasetSpec, steps: int = 4, **changes):
    generator = build(tiny, kind, spec, steps=steps, **changes)
    fit = training.fit(generator, [(toy, 16)], steps=steps, seed=0, task=kind, progress=Silent())
    return generator, fit


def draw(generator, labels, chunk=4, batch=4, seed=7, **kwargs) -> Batch:
    return Batch.concatenate(list(sampling.sample(generator, labels, seed=seed, chunk=chunk, batch=batch, prefix="x", **kwargs)))


# The contract, for every built-in generator and each promise


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("promise", testing.CHECKS)
def test_it_keeps_its_promise(tiny, kind, promise):
    testing.CHECKS[promise](testing.Subject(MODELS[kind], tiny.generators.of(kind), steps=LABEL_STEPS.get(kind, 30)))


# What each of them is for


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


# Checkpoints and samplers


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


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_size_trains_and_samples_at_32_px(kind, size):
    config = load("cifar10-2k", [f"size={size}", "data.path=x", "generators.diffusion.sampling_steps=2"])
    own = getattr(config.generators, kind).model_copy(update={"steps": 1, "batch_size": 2})
    spec = DatasetSpec("x", (3, 32, 32), ("a", "b"), False, "")
    generator = models.build(own, spec, config.augment)
    training.fit(generator, [(toy_images(4, (3, 32, 32), 2), 2)], steps=1, seed=0, task=kind, progress=Silent())
    assert draw(generator, np.array([0, 1]), chunk=2).images.shape == (2, 3, 32, 32)
