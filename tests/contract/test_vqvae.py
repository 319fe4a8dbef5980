"""The VQ-VAE's parts: codebook, cached prior, sampling of codes, two phases; and what VAE and VQ-VAE say of held-out images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from synthgen import models, training
from synthgen.data.transforms import to_float
from synthgen.errors import ConfigError
from synthgen.models import Noise
from synthgen.models.augmentation import NUM_PARAMETERS
from synthgen.models.vae import gaussian_nll, kl_divergence
from synthgen.models.vqvae import Cache, Codebook, gumbel, within
from synthgen.types import Batch, DatasetSpec, Silent
from tests.conftest import toy_images

SPEC = DatasetSpec("toy", (1, 8, 8), ("a", "b", "c"), False, "0" * 64)


def build(tiny, kind: str = "vqvae", **changes):
    own = getattr(tiny.generators, kind).model_copy(update=changes)
    return models.build(own, SPEC, tiny.augment).eval()


def trained(tiny, kind: str, toy: Batch, **changes):
    generator = build(tiny, kind, **changes)
    fit = training.fit(generator, [(toy, 16)], steps=generator.config.steps, seed=0, task=kind, progress=Silent())
    return generator, fit


def opinionated(tiny, **changes):
    """A network whose prior, which starts with all codes alike, prefers some."""
    network = build(tiny, codes=5, **changes).network
    torch.nn.init.normal_(network.prior.head.weight, generator=torch.Generator().manual_seed(0), std=0.5)
    return network


def as_tensors(batch: Batch):
    return to_float(batch.images), torch.from_numpy(batch.labels)


def test_dead_codes_come_back_and_live_ones_stay():
    codebook, rng = Codebook(4, 2), np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(40, 2)).astype(np.float32))
    codebook.entries.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [99.0, 99.0], [-99.0, 99.0]]))
    codebook.counts.copy_(torch.tensor([20.0, 20.0, 0.5, 0.0]))
    codebook.reseed(z, rng)
    assert codebook.entries[:2].tolist() == [[0, 0], [1, 1]]
    assert all((z == entry).all(1).any() for entry in codebook.entries[2:])
    assert codebook.counts.tolist() == [20, 20, 10, 10]
    assert set(codebook.nearest(z).tolist()) == {0, 1, 2, 3}


def test_more_codes_than_vectors_can_be_seeded():
    codebook = Codebook(50, 2)
    codebook.reseed(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), np.random.default_rng(0))
    assert torch.isfinite(codebook.entries).all()
    assert (codebook.counts > 0).all()


def test_an_entry_follows_the_mean_of_its_vectors():
    codebook = Codebook(2, 1)
    codebook.entries.copy_(torch.tensor([[0.0], [10.0]]))
    codebook.counts.copy_(torch.tensor([2.0, 4.0]))
    codebook.sums.copy_(torch.tensor([[0.0], [40.0]]))
    z = torch.tensor([[1.0], [2.0], [9.0]])
    codebook.follow(z, codebook.nearest(z), 0.75)
    # N: 0.75 * 2 + 0.25 * 2 = 2 and 0.75 * 4 + 0.25 = 3.25; m: 0.25 * 3 = 0.75 and 0.75 * 40 + 0.25 * 9 = 32.25
    assert torch.allclose(codebook.entries, torch.tensor([[0.375], [32.25 / 3.25]]))


def test_nearly_all_codes_are_in_use_after_training(tiny, toy):
    generator, _ = trained(tiny, "vqvae", toy, steps=80, codes=24)
    used = torch.unique(generator.ema.network.encode(as_tensors(toy)[0]))
    assert len(used) >= 18


def test_the_encoder_learns_through_the_codes(tiny, toy):
    generator = build(tiny, commitment=1e-12)
    generator.training_step(as_tensors(toy), 0).backward()
    assert generator.network.autoencoder.stem.weight.grad.abs().max() > 1e-4


def test_the_cache_gives_what_the_whole_sequence_gives(tiny):
    network = opinionated(tiny, prior_layers=3)
    draws = np.random.default_rng(0)
    codes, labels = torch.from_numpy(draws.integers(0, 5, (6, 16))), torch.tensor([0, 1, 2, 0, 1, 2])
    none = torch.zeros(6, NUM_PARAMETERS)
    with torch.no_grad():
        whole = network.logits(codes, labels, none)
        cache, condition, last, steps = Cache(), network.prior.condition(labels, none), None, []
        for place in range(16):
            steps.append(network.prior.following(last, condition, place, cache))
            last = network.codebook.entries[codes[:, place]]
    assert whole.std(dim=2).min() > 0.05
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_place_sees_only_those_before_it(tiny):
    network = opinionated(tiny)
    codes, labels, none = torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(1, NUM_PARAMETERS)
    other = codes.clone()
    other[0, 7] = 3
    with torch.no_grad():
        change = (network.logits(other, labels, none) - network.logits(codes, labels, none)).abs().amax(2)[0]
    assert change[:8].max() < 1e-6
    assert change[8:].min() > 1e-6


def test_gumbel_numbers_have_their_distribution_and_finite_tails():
    z = torch.from_numpy(np.random.default_rng(0).normal(size=200_000))
    g = gumbel(z)
    assert abs(float(g.mean()) - 0.57722) < 0.01
    assert abs(float(g.var()) - np.pi**2 / 6) < 0.03
    tails = gumbel(torch.tensor([-12.0, 12.0]))
    assert torch.isfinite(tails).all()
    assert tails[1] > 70  # 1 - Phi(12) is 1.8e-33, which 1 - u can't hold


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_codes_are_drawn_from_the_distribution_that_the_prior_gives(tiny, temperature):
    network, num = opinionated(tiny), 4000
    labels = torch.ones(num, dtype=torch.int64)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(num, 2, 5)).astype(np.float32))
    none = torch.zeros(1, NUM_PARAMETERS)
    with torch.no_grad():
        codes = network.draw(labels, noise, temperature)
        expected = torch.zeros(5, 5)
        for first in range(5):
            logits = network.logits(torch.tensor([[first, 0]]), labels[:1], none)[0] / temperature
            expected[first] = logits[0].softmax(0)[first] * logits[1].softmax(0)
    found = torch.bincount(5 * codes[:, 0] + codes[:, 1], minlength=25).reshape(5, 5)
    chi_square = float(((found - num * expected).square() / (num * expected)).sum())
    assert chi_square < 51.2, chi_square  # p = 0.001 at 24 degrees of freedom
    assert expected.max() / expected.min() > 5


def test_a_sample_is_fixed_by_its_own_noise_and_label(tiny):
    generator = build(tiny, codes=5)
    generator.ema.network.load_state_dict(opinionated(tiny).state_dict())
    labels = torch.tensor([0, 1, 2, 1])
    images = generator.sample(labels, Noise(3, np.array([5, 6, 7, 8])))
    order = [2, 0, 3, 1]
    again = generator.sample(labels[order], Noise(3, np.array([5, 6, 7, 8])[order]))
    torch.testing.assert_close(again, images[order])


def test_the_autoencoder_is_trained_first_and_then_the_prior_on_codes_that_stay(tiny, toy):
    class Record(Silent):
        """Weights after each step."""

        def advance(self, task, steps=1, note=""):
            seen.append({name: tensor.clone() for name, tensor in generator.network.state_dict().items()})

    seen: list = []
    generator = build(tiny, steps=10, prior_share=0.4, ema=(0.5, 0.9))
    assert generator.first_prior_step == 6
    training.fit(generator, [(toy, 16)], steps=10, seed=0, task="x", progress=Record())
    moved = [{part for part in ("autoencoder", "codebook", "prior") if differs(a, b, part)} for a, b in itertools.pairwise(seen)]
    assert moved == [{"autoencoder", "codebook"}] * 5 + [{"autoencoder", "prior"}] + [{"prior"}] * 3
    for one, other in itertools.combinations((generator.network, *generator.ema.networks), 2):
        for a, b in zip(one.autoencoder.parameters(), other.autoencoder.parameters(), strict=True):
            assert (a == b).all()


def differs(a, b, part: str) -> bool:
    return any((a[name] != b[name]).any() for name in a if name.startswith(f"{part}."))


def test_each_phase_warms_up_and_decays():
    factor = within(100, 200)
    values = [factor(step) for step in range(300)]
    assert max(values[:100]) == 0
    assert max(values[200:]) == 0
    assert values[100] == pytest.approx(0.2)
    assert values[105] == pytest.approx(1)
    assert values[199] == pytest.approx(0.1, abs=0.01)


def test_the_prior_learns_the_codes_of_a_class(tiny, toy):
    _, fit = trained(tiny, "vqvae", toy.take(np.arange(6)), steps=160, prior_share=0.5)
    prior = [loss for step, loss in fit.losses if step > 80]
    assert prior[0] > 2
    assert np.mean(prior[-10:]) < 1.5


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_held_out_loss_falls_with_training_and_is_higher_for_noise(tiny, kind):
    train, held_out = (toy_images(48, (1, 8, 8), 3).take(np.arange(a, a + 24)) for a in (0, 24))
    fresh, (generator, _) = build(tiny, kind), trained(tiny, kind, train, steps=200, lr=4e-3)
    images, labels = as_tensors(held_out)
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, images.shape).astype(np.float32))
    loss = generator.held_out_loss(images, labels)
    assert loss.shape == (24,)
    assert (generator.held_out_loss(images, labels) == loss).all()
    assert loss.mean() < fresh.held_out_loss(images, labels).mean() - 0.3
    assert loss.mean() < generator.held_out_loss(noise, labels).mean() - 0.3
    assert loss.mean() < generator.held_out_loss(images, (labels + 1) % 3).mean() - 0.01
    both = generator.held_out_loss(torch.cat([images, noise]), torch.cat([labels, labels]))
    assert both[:24].max() < both[24:].min()


def test_gaussian_nll_is_that_of_a_normal_density():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 50)))
    error = x.square().mean(1)
    expected = -torch.distributions.Normal(0.0, 0.7**0.5).log_prob(x).mean(1)
    torch.testing.assert_close(gaussian_nll(error, 0.7), expected)
    assert gaussian_nll(error).mean() <= min(float(gaussian_nll(error, v).mean()) for v in np.linspace(0.3, 3, 100))


def test_free_bits_leave_the_latent_alone_below_their_threshold(tiny, toy):
    batch = as_tensors(toy)

    def gradient(**changes):
        vae = build(tiny, "vae", warmup=0.0, **changes)
        vae.training_step(batch, 0).backward()
        return torch.cat([p.grad.flatten() for p in vae.network.parameters() if p.grad is not None])

    without = gradient(beta=1e-30)
    torch.testing.assert_close(gradient(beta=10.0, free_bits=1e3), without)  # no gradient of the KL term is left
    assert (gradient(beta=10.0) - without).abs().max() > 1e-4


def test_free_bits_count_by_dimension_and_in_the_mean_of_the_batch(tiny, toy):
    images, labels = as_tensors(toy)
    losses = []
    for free in (0.0, 0.02):
        vae = build(tiny, "vae", warmup=0.0, beta=1.0, free_bits=free)
        losses.append(vae.training_step((images, labels), 0).item())
    x, parameters = models.vae.non_leaking(images, vae.draws("augment"), vae.augment, probability=0.5)
    kl = kl_divergence(*vae.network.encode(x, labels, parameters)).mean(0)
    assert kl.min() < 0.02 < kl.max()
    assert losses[1] - losses[0] == pytest.approx(F.relu(0.02 - kl).sum().item() / 64, rel=1e-3)


def test_images_that_cannot_be_halved_so_often_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"generators\.vqvae\.halvings: 8 x 8 px can't be halved 4 times"):
        build(tiny, halvings=4)


def test_how_to_sample_is_said_in_provenance(tiny):
    assert build(tiny, temperature=0.8).sampler == "ancestral temperature=0.8"


def test_more_codes_than_random_numbers_fit_are_refused(tiny):
    own = tiny.generators.vqvae.model_copy(update={"codes": 65536, "halvings": 1})
    spec = DatasetSpec("x", (3, 32, 32), ("a", "b"), False, "")
    with pytest.raises(ConfigError, match=r"generators\.vqvae\.codes: 16 x 16 places of 65536 codes"):
        models.build(own, spec, tiny.augment)
