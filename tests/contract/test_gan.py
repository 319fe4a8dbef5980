"""The GAN's own promises: both losses learn, the penalties are right, augmentation adapts, truncation is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from synthgen import models, randomness, training
from synthgen.errors import ConfigError
from synthgen.models import Noise, base
from synthgen.models.gan import diffaugment, with_gradient_penalty
from synthgen.types import Batch, DatasetSpec, Silent

LOSSES = ("relativistic", "hinge")


def build(tiny, spec: DatasetSpec, seed: int = 0, **changes):
    return models.build(tiny.generators.gan.model_copy(update=changes), spec, tiny.augment, seed)


def trained(tiny, toy: Batch, spec: DatasetSpec, steps: int, seed: int = 0, **changes):
    gan = build(tiny, spec, seed, steps=steps, **changes)
    fit = training.fit(gan, [(toy, 16)], steps=steps, seed=seed, task="gan", progress=Silent())
    return gan, fit


def made(gan, labels, first: int = 0):
    return gan.eval().sample(torch.tensor(labels), Noise(0, np.arange(first, first + len(labels))))


@pytest.mark.parametrize(("loss", "steps"), [("relativistic", 100), ("hinge", 300)])  # hinge learns later on some processors
def test_either_loss_learns_the_class_means(tiny, toy, toy_spec, loss, steps):
    gan, fit = trained(tiny, toy, toy_spec, steps, loss=loss, diffaugment=(), lr=2e-3, lr_discriminator=4e-3, gamma=1.0)
    labels = np.repeat([0, 1, 2], 8)
    images = made(gan, labels).numpy()
    real = np.stack([toy.images[toy.labels == label].mean(0) for label in range(3)]) / 127.5 - 1
    distance = np.abs(np.stack([images[labels == label].mean(0) for label in range(3)])[:, None] - real[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(3)).all(), distance
    assert distance.diagonal().max() < 0.4
    assert all(np.isfinite(loss) for _, loss in fit.losses)


@pytest.mark.parametrize("loss", LOSSES)
def test_either_loss_resumes_bit_exactly_with_its_adapted_augmentation(tiny, toy, toy_spec, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(training, "EPOCH", 3)
    changes = {"loss": loss, "adaptive": 0.0, "lr_discriminator": 1e-2}
    whole, whole_fit = trained(tiny, toy, toy_spec, 8, **changes)

    class Killed(Exception):
        pass

    class Kill(Silent):
        def advance(self, task, steps=1, note=""):
            object.__setattr__(self, "seen", getattr(self, "seen", 0) + steps)
            if self.seen == 7:
                raise Killed

    settings = {"steps": 8, "seed": 0, "task": "gan", "folder": tmp_path, "save_every_s": 0.0}
    with pytest.raises(Killed):
        training.fit(build(tiny, toy_spec, steps=8, **changes), [(toy, 16)], progress=Kill(), **settings)
    resumed = build(tiny, toy_spec, steps=8, **changes)
    fit = training.fit(resumed, [(toy, 16)], progress=Silent(), **settings)
    assert whole.augment_probability > 0
    assert resumed.augment_probability == whole.augment_probability
    assert base.to_bytes(resumed) == base.to_bytes(whole)
    assert fit.losses == whole_fit.losses


class Linear(nn.Module):
    """D(x, y) = <weight_y, x>, whose gradient at any image is weight_y."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, labels):
        return (self.weight[labels] * x.flatten(1)).sum(1)


def test_the_penalty_of_a_linear_discriminator_is_its_squared_weight():
    x, labels = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1, 1])
    discriminator = Linear()
    on_real, on_fake, penalty = with_gradient_penalty(discriminator, x, labels)
    assert torch.equal(torch.cat([on_real, on_fake]), discriminator(x, labels))
    squares = discriminator.weight.square().sum(1)[labels]
    r1, r2 = squares[:3].mean(), squares[3:].mean()
    assert penalty.item() == pytest.approx((r1 + r2).item(), rel=1e-6)
    penalty.backward()  # R1 + R2 = 2/3 |w_0|^2 + 4/3 |w_1|^2
    expected = discriminator.weight.detach() * torch.tensor([[4 / 3], [8 / 3]])
    assert torch.allclose(discriminator.weight.grad, expected, rtol=1e-5)


def test_the_penalty_of_the_real_discriminator_agrees_with_finite_differences(tiny, toy_spec):
    discriminator = build(tiny, toy_spec, loss="relativistic").discriminator.double()
    nn.init.normal_(discriminator.blocks[0].conv2.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels, step = torch.tensor([0, 2]), 1e-6
    slopes = torch.zeros(2, 64, dtype=torch.float64)
    for pixel in range(64):
        moved = x.flatten(1).clone()
        moved[:, pixel] += step
        slopes[:, pixel] = (discriminator(moved.view_as(x), labels) - discriminator(x, labels)) / step
    assert with_gradient_penalty(discriminator, x, labels)[2].item() == pytest.approx(slopes.square().sum().item(), rel=1e-3)


def test_a_plain_discriminator_starts_with_blocks_that_do_nothing_and_keeps_the_variance(tiny):
    spec = DatasetSpec("x", (3, 32, 32), ("a", "b"), False, "")
    discriminator = build(tiny, spec, loss="relativistic").discriminator
    x = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = discriminator.stem(x)
    assert torch.equal(discriminator.blocks[0](features), features)
    assert 0.5 < features.std().item() < 2
    assert discriminator(x, torch.arange(128) % 2).std().item() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_augmentation_grows_while_the_discriminator_is_surer_than_the_aim(tiny, toy, toy_spec, loss):
    few = toy.take(np.arange(3))  # a generator that doesn't move, three images: the discriminator learns them by heart
    changes = {"loss": loss, "lr": 1e-9, "lr_discriminator": 1e-2, "gamma": 0.01}
    sure, _ = trained(tiny, few, toy_spec, 30, adaptive=0.3, **changes)
    unsure, _ = trained(tiny, few, toy_spec, 30, adaptive=1.0, **changes)
    assert sure.augment_probability > 0.5
    assert unsure.augment_probability == 0


def test_each_change_is_made_with_the_probability_given():
    x = torch.zeros(4000, 1, 8, 8)

    def changed(probability: float) -> float:
        draws = randomness.stream(0, "test")
        return (diffaugment(x, draws, ("brightness",), torch.tensor(probability)) != 0).flatten(1).any(1).float().mean().item()

    assert changed(0.0) == 0
    assert changed(0.3) == pytest.approx(0.3, abs=0.03)
    assert changed(1.0) == 1
    everything, never = ("brightness", "translation", "cutout"), torch.tensor(0.0)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(diffaugment(images, randomness.stream(0, "test"), everything, never), images)


@pytest.fixture
def gan(tiny, toy, toy_spec):
    return trained(tiny, toy, toy_spec, 20, lr=2e-3)[0]


def with_truncation(gan, *factors: float):
    gan.config = gan.config.model_copy(update={"truncation": factors})
    return gan


def test_truncation_0_gives_one_image_a_class_and_1_changes_no_byte(gan):
    labels = [0, 1, 2, 0, 1, 2]
    plain = made(gan, labels)
    assert torch.equal(plain, gan.ema.network(Noise(0, np.arange(6))("latent", (gan.config.latent_dim,)), torch.tensor(labels)))
    assert (plain[:3] - plain[3:]).abs().amax((1, 2, 3)).min() > 1e-3
    none = made(with_truncation(gan, 0.0), labels)
    assert torch.allclose(none[:3], none[3:], atol=1e-5)
    assert (none[0] - none[1]).abs().max() > 1e-3
    factors = torch.ones(6)
    z = Noise(0, np.arange(6))("latent", (gan.config.latent_dim,))
    assert torch.equal(gan.ema.network(z, torch.tensor(labels), factors), plain)


def test_truncation_shrinks_the_spread_about_the_mean_of_the_class(gan):
    z, labels = torch.randn(400, gan.config.latent_dim, generator=torch.Generator().manual_seed(0)), torch.zeros(400).long()
    with torch.no_grad():
        w, mean = gan.ema.network.style(z, labels), gan.ema.network.mean_style(z[:1], labels[:1])
    assert (w.mean(0) - mean).norm() < 0.15 * (w - mean).norm(dim=1).mean()


def test_a_class_has_its_own_truncation(gan):
    labels = [0, 1, 2, 0, 1, 2]
    plain = made(gan, labels)
    some = made(with_truncation(gan, 1.0, 0.0, 0.5), labels)
    assert torch.equal(some[[0, 3]], plain[[0, 3]])
    assert torch.allclose(some[1], some[4], atol=1e-5)
    assert torch.allclose(made(with_truncation(gan, 0.5), labels)[[2, 5]], some[[2, 5]], atol=1e-5)
    assert gan.sampler == "gan truncation=0.5"


def test_a_truncated_sample_does_not_depend_on_the_labels_beside_it(gan):
    with_truncation(gan, 0.6)
    assert torch.equal(made(gan, [0, 1, 2, 0])[0], made(gan, [0, 0, 0, 0])[0])


def test_a_wrong_number_of_truncations_is_refused_when_it_is_built_and_when_it_samples(tiny, toy_spec, gan):
    with pytest.raises(ConfigError, match=r"generators\.gan\.truncation: 2 numbers for the 3 classes of toy"):
        build(tiny, toy_spec, truncation=(0.5, 0.7))
    with pytest.raises(ConfigError, match="4 numbers"):
        made(with_truncation(gan, 1.0, 1.0, 1.0, 1.0), [0])
