"""SimCLR: the published loss, two views of each image, and weights that fit the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.stacks import Source, Stack, StackBatch, one_hot
from synthgen.models.classifier import ClassifierNetwork
from synthgen.models.contrastive import PROJECTED, TEMPERATURE, SimCLR, nt_xent
from synthgen.models.stacked import FEATURES
from synthgen.training import fit
from synthgen.types import Silent

CONFIG = ClassifierConfig(width=4, batch_size=8, steps=30, lr=0.01)
LIMITS = AugmentConfig(flip=False, shift_px=1, rotate_deg=10, scale=0.1)


def slow(projected: np.ndarray, temperature: float) -> float:
    """Equation 1 of the paper, pair by pair: views i and i + m are of image i."""
    z = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    v, losses = len(z), []
    for i in range(v):
        j = (i + v // 2) % v
        others = sum(np.exp(z[i] @ z[k] / temperature) for k in range(v) if k != i)
        losses.append(-np.log(np.exp(z[i] @ z[j] / temperature) / others))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("pairs", [2, 5])
def test_nt_xent_is_the_papers(pairs, temperature):
    projected = np.random.default_rng(pairs).normal(size=(3, 2 * pairs, 6))
    found = nt_xent(torch.from_numpy(projected), temperature)
    assert found.shape == (3,)
    assert found.numpy() == pytest.approx([slow(each, temperature) for each in projected], rel=1e-9)


def test_nt_xent_is_least_where_views_agree_and_images_dont():
    apart = torch.eye(4)[None].double()
    agreeing = nt_xent(torch.cat([apart, apart], dim=1))
    collapsed = nt_xent(torch.ones((1, 8, 4)).double())
    swapped = nt_xent(torch.cat([apart, apart.flip(1)], dim=1))
    assert float(collapsed) == pytest.approx(np.log(7))
    assert float(agreeing) < float(collapsed) < float(swapped)
    assert float(nt_xent(3 * torch.cat([apart, apart], dim=1))) == pytest.approx(float(agreeing)), "lengths don't matter"
    assert float(agreeing) == pytest.approx(slow(np.tile(np.eye(4), (2, 1)), TEMPERATURE))


def batches(toy, seeds, labels=None) -> Stack:
    labels = toy.labels if labels is None else labels
    return Stack([Source.shared(toy.images, one_hot(labels, 3), len(seeds), 12)], seeds)


def trained(toy, spec, seeds, steps: int = 30, labels=None) -> tuple[SimCLR, list[float]]:
    made = SimCLR(CONFIG.model_copy(update={"steps": steps}), spec, seeds, LIMITS)
    found = fit(made, batches(toy, seeds, labels), steps=steps, seed=0, task="simclr", progress=Silent())
    return made, [loss for _, loss in found.losses]


def test_the_loss_falls(toy_spec):
    """12 images without anything in common, hardly changed: from log 23 a network, where no view is told apart, to half."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    limits = AugmentConfig(flip=False, shift_px=0, rotate_deg=0, scale=0, contrast=0.1)
    made = SimCLR(CONFIG.model_copy(update={"steps": 40}), toy_spec, (0, 1), limits)
    shared = Stack([Source.shared(images, np.zeros((12, 3), np.float32), 2, 12)], (0, 1))
    losses = [loss for _, loss in fit(made, shared, steps=40, seed=0, task="simclr", progress=Silent()).losses]
    assert losses[0] == pytest.approx(2 * np.log(23), rel=0.05)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert made.step == 40


def test_labels_are_not_looked_at(toy, toy_spec):
    one, _ = trained(toy, toy_spec, (0,), 5)
    other, _ = trained(toy, toy_spec, (0,), 5, labels=(toy.labels + 1) % 3)
    for mine, theirs in zip(one.network.get(0).values(), other.network.get(0).values(), strict=True):
        assert torch.equal(mine, theirs)


def by_hand(toy, spec, seeds) -> SimCLR:
    """20 steps in double precision."""
    made, stack = SimCLR(CONFIG, spec, seeds, LIMITS).double(), batches(toy, seeds)
    optimizer = torch.optim.AdamW([*made.network.parameters(), *made.projection.parameters()], lr=0.01)
    made.train()
    for step in range(20):
        optimizer.zero_grad()
        made.training_step(stack[step]._replace(images=stack[step].images.double()), step).backward()
        optimizer.step()
    return made


def test_networks_side_by_side_equal_networks_alone(toy, toy_spec):
    together = by_hand(toy, toy_spec, (3, 1001))
    for number, seed in enumerate((3, 1001)):
        alone, fresh = by_hand(toy, toy_spec, (seed,)), SimCLR(CONFIG, toy_spec, (seed,), LIMITS)
        for name, value in alone.network.get(0).items():
            if not name.endswith("num_batches_tracked"):
                assert torch.allclose(together.network.get(number)[name], value, rtol=1e-9, atol=1e-9), name
        assert torch.allclose(together.projection.weight[number], alone.projection.weight[0], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(fresh.projection.weight[0].double(), alone.projection.weight[0], atol=1e-2), "it learnt"
        first = "stages.0.weight"
        assert not torch.allclose(fresh.network.get(0)[first].double(), alone.network.get(0)[first], atol=1e-2)
    assert not torch.allclose(together.projection.weight[0], together.projection.weight[1], atol=1e-2)


def test_the_head_is_left_as_it_was(toy, toy_spec):
    """It is no part of what is compared; whoever goes on from here brings his own."""
    made, _ = trained(toy, toy_spec, (0,), 5)
    fresh = SimCLR(CONFIG, toy_spec, (0,), LIMITS).network.get(0)
    assert torch.equal(made.network.get(0)["head.weight"], fresh["head.weight"])
    ClassifierNetwork(4, FEATURES, 0.0, toy_spec).load_state_dict(made.network.get(0))


def test_a_start_is_that_of_a_classifier_of_the_seed(toy_spec):
    made = SimCLR(CONFIG, toy_spec, (5, 6), LIMITS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        expected = ClassifierNetwork(4, FEATURES, 0.0, toy_spec).state_dict()
    for name, value in made.network.get(1).items():
        assert torch.equal(value, expected[name])
    assert made.projection.weight.shape == (2, PROJECTED, FEATURES)
    assert not torch.equal(made.projection.weight[0], made.projection.weight[1])


def test_the_views_of_an_image_differ_and_are_paired(toy_spec, monkeypatch):
    """The loss is that of the projections of two strongly changed copies of the batch, image by image."""
    made = SimCLR(CONFIG, toy_spec, (0, 1), LIMITS)
    x = torch.rand((2, 6, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []
    original = made.network.features
    monkeypatch.setattr(made.network, "features", lambda views: seen.append(views) or original(views))
    made.eval()  # statistics stay, so that the second pass is the first
    loss = made.training_step(StackBatch(x, torch.zeros((2, 6, 3)), None), 0).detach()
    views = seen[0]
    assert views.shape == (2, 12, 1, 8, 8)
    assert not torch.allclose(views[:, :6], views[:, 6:])
    assert not torch.allclose(views[0], views[1])
    correlation = F.cosine_similarity(views[:, :6].flatten(2), views[:, 6:].flatten(2), dim=2).mean()
    mismatched = F.cosine_similarity(views[:, :6].flatten(2), views[:, 6:].roll(1, 1).flatten(2), dim=2).mean()
    assert correlation > mismatched + 0.1
    projected = made.projection(original(views)).detach().numpy()
    assert float(loss) == pytest.approx(sum(slow(each, TEMPERATURE) for each in projected), rel=1e-4)
    made.training_step(StackBatch(x, torch.zeros((2, 6, 3)), None), 0)
    assert not torch.equal(seen[1], views), "another step, other views"
