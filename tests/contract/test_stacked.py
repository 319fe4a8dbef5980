"""Networks trained side by side are those that would be trained alone: every weight, every statistic, every draw."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data.policies import POLICIES
from synthgen.data.stacks import Source, Stack, StackBatch, one_hot
from synthgen.models.classifier import Classifier, ClassifierNetwork, probabilities
from synthgen.models.stacked import (
    FEATURES,
    StackedClassifier,
    StackedNetwork,
    Training,
    _of_own_class,
    channels_last,
    soft_cross_entropy,
    stacked_probabilities,
)
from synthgen.training import fit
from synthgen.types import Batch, DatasetSpec, Silent

CONFIG = ClassifierConfig(width=4, batch_size=12, steps=40, dropout=0.0, lr=0.01)
LIMITS = AugmentConfig(flip=True, shift_px=1, rotate_deg=10, scale=0.1)
SEEDS = (3, 1001, 7)
PLAIN = Training(policy="")


def images(n: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, 8, 8), dtype=np.uint8)


def stack(seeds, counts: tuple[int, ...] = (12,), unlabelled: int = 0) -> Stack:
    """Sources of 20 images each, labelled in turn; network i leaves out row i."""
    rows = tuple(np.delete(np.arange(20), [SEEDS.index(seed)]) for seed in seeds)
    target = one_hot(np.arange(20) % 3, 3)
    sources = [Source(images(20, i), rows, tuple(target[own] for own in rows), count) for i, count in enumerate(counts)]
    if unlabelled:
        sources.append(Source(images(20, 9), rows, None, unlabelled))
    return Stack(sources, seeds)


def module(spec: DatasetSpec, seeds, training: Training, config: ClassifierConfig = CONFIG, start=None) -> StackedClassifier:
    return StackedClassifier(config, spec, seeds, LIMITS, training, start)


def fitted(spec: DatasetSpec, seeds, training: Training, steps: int, unlabelled: int = 0, start=None) -> StackedNetwork:
    made = module(spec, seeds, training, CONFIG.model_copy(update={"steps": steps}), start)
    fit(made, stack(seeds, unlabelled=unlabelled), steps=steps, seed=0, task="stacked", progress=Silent())
    return made.network


def by_hand(spec: DatasetSpec, seeds, training: Training, steps: int, unlabelled: int) -> StackedNetwork:
    """In double precision, where the sums of a convolution of another shape differ by 1e-16 only."""
    made, batches = module(spec, seeds, training).double(), stack(seeds, (8, 4), unlabelled)
    optimizer = torch.optim.AdamW(made.network.parameters(), lr=0.01, weight_decay=0.02)
    made.train()
    for step in range(steps):
        batch = batches[step]
        doubled = StackBatch(*(None if part is None else part.double() for part in batch))
        optimizer.zero_grad()
        made.training_step(doubled, step).backward()
        optimizer.step()
    return made.network


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of a weight or statistic, as a share of the largest of its tensor."""
    assert one.keys() == other.keys()
    found = 0.0
    for name, value in one.items():
        assert value.shape == other[name].shape
        scale = max(float(value.abs().max()), 1e-3)
        found = max(found, float((value.double() - other[name].double()).abs().max()) / scale)
    return found


# Side by side or alone


@pytest.mark.parametrize(
    ("training", "unlabelled"),
    [
        (Training(mixing="mixup", smoothing=0.1, dropout=0.3), 0),
        (Training(policy="randaugment", mixing="cutmix", dropout=0.3), 0),
        (Training(policy="trivialaugment", mixing="smote", alpha=0.5), 0),
        (Training(policy="cutout", smoothing=0.2), 0),
        (Training(dropout=0.3, confidence=0.4), 10),
    ],
    ids=["mixup", "randaugment cutmix", "trivialaugment smote", "cutout", "fixmatch"],
)
def test_three_side_by_side_equal_three_alone_in_double_precision(toy_spec, training, unlabelled):
    together = by_hand(toy_spec, SEEDS, training, 40, unlabelled)
    for number, seed in enumerate(SEEDS):
        alone = by_hand(toy_spec, (seed,), training, 40, unlabelled)
        assert apart(together.get(number), alone.get(0)) < 1e-9
    assert apart(together.get(0), together.get(1)) > 0.1, "other seeds are other networks"


def test_three_side_by_side_equal_three_alone_in_single_precision(toy_spec):
    """20 steps of what a study runs: 1e-4 of the largest weight of a tensor (measured: 1e-6), where seeds differ by 0.1."""
    training = Training(mixing="mixup", dropout=0.3)
    together = fitted(toy_spec, SEEDS, training, 20)
    for number, seed in enumerate(SEEDS):
        assert apart(together.get(number), fitted(toy_spec, (seed,), training, 20).get(0)) < 1e-4
    assert apart(together.get(0), together.get(1)) > 0.1


def test_a_stack_equals_the_classifiers_that_lightning_trains_one_by_one(toy_spec):
    """10 steps, single precision: 1e-4 of the largest weight of a tensor (measured: 1e-5)."""
    config = CONFIG.model_copy(update={"steps": 10})
    together = fitted(toy_spec, SEEDS, PLAIN, 10)
    for number, seed in enumerate(SEEDS):
        own = np.delete(np.arange(20), [number])
        batch = Batch(images(20)[own], own % 3, tuple(str(i) for i in own))
        alone = Classifier(config, toy_spec, seed)
        start = {name: value.clone() for name, value in alone.network.state_dict().items()}
        fit(alone, [(batch, 12)], steps=10, seed=seed, task="alone", progress=Silent())
        assert apart(together.get(number), alone.network.state_dict()) < 1e-4
        assert apart(start, alone.network.state_dict()) > 0.1, "they did learn"


def test_a_stack_is_the_same_bytes_again(toy_spec):
    one, two = (fitted(toy_spec, SEEDS, Training(mixing="cutmix", dropout=0.2), 8) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_nothing_comes_from_torchs_global_generator(toy_spec):
    settings, batch = Training(mixing="mixup", dropout=0.3), one_batch(2, 6, 4)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(module(toy_spec, SEEDS[:2], settings))
        made[-1].train()
        made[-1].training_step(batch, 0).backward()
    for one, two in zip(made[0].network.parameters(), made[1].network.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one.grad, two.grad)


# Weights in and out


def test_what_is_put_comes_back(toy_spec):
    network = channels_last(StackedNetwork(3, 4, toy_spec))
    states = []
    for number in range(3):
        torch.manual_seed(number)
        single = ClassifierNetwork(4, FEATURES, 0.0, toy_spec)
        single.train()
        single(torch.randn(6, 1, 8, 8))  # statistics of its own
        states.append(single.state_dict())
        network.put(number, states[-1])
    for number, state in enumerate(states):
        got = network.get(number)
        assert got.keys() == state.keys()
        for name, value in state.items():
            assert got[name].shape == value.shape
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(got[name], value), name
        other = ClassifierNetwork(4, FEATURES, 0.0, toy_spec)
        other.load_state_dict(got)


def test_a_stack_says_what_its_networks_say(toy_spec):
    states = [fitted(toy_spec, SEEDS, PLAIN, 5).get(number) for number in range(3)]
    network = StackedNetwork(3, 4, toy_spec)
    for number, state in enumerate(states):
        network.put(number, state)
    queried = images(30, 5)
    found = stacked_probabilities(channels_last(network), queried, chunk=7)
    assert found.dtype == np.float32
    assert found.shape == (3, 30, 3)
    for number, state in enumerate(states):
        single = ClassifierNetwork(4, FEATURES, 0.0, toy_spec)
        single.load_state_dict(state)
        assert np.allclose(found[number], probabilities(single, queried), atol=1e-6)
    assert not np.allclose(found[0], found[1], atol=1e-2)
    assert stacked_probabilities(network, queried[:0]).shape == (3, 0, 3)


def test_colour_images_of_other_sizes(toy_spec):
    spec = replace(toy_spec, image_shape=(3, 12, 10))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 12, 10), dtype=np.uint8)
    made = module(spec, (0, 1), Training(policy="randaugment"))
    fit(
        made,
        Stack([Source.shared(pixels, one_hot(np.arange(9) % 3, 3), 2, 6)], (0, 1)),
        steps=3,
        seed=0,
        task="x",
        progress=Silent(),
    )
    found = stacked_probabilities(made.network, pixels)
    for number in range(2):
        single = ClassifierNetwork(4, FEATURES, 0.0, spec)
        single.load_state_dict(made.network.get(number))
        assert np.allclose(found[number], probabilities(single, pixels), atol=1e-6)


def test_every_networks_statistics_are_its_own(toy_spec):
    """Batch norm of a network must not see another's images: one gets black images, one white ones."""
    made = module(toy_spec, (0, 0), PLAIN)
    made.train()
    dark_and_bright = torch.stack([torch.full((6, 1, 8, 8), -1.0), torch.full((6, 1, 8, 8), 1.0)])
    dark_and_bright += 0.1 * torch.randn(dark_and_bright.shape, generator=torch.Generator().manual_seed(0))
    made.network(dark_and_bright)
    first, second = made.network.get(0), made.network.get(1)
    name = "stages.1.running_mean"
    alone = ClassifierNetwork(4, FEATURES, 0.0, toy_spec)
    alone.load_state_dict(module(toy_spec, (0, 0), PLAIN).network.get(0))
    alone.train()
    alone(dark_and_bright[0])
    assert torch.allclose(first[name], alone.state_dict()[name], atol=1e-6)
    assert not torch.allclose(first[name], second[name], atol=1e-3)
    assert torch.equal(first["stages.0.weight"], second["stages.0.weight"]), "equal seeds start alike"


def test_given_weights_stand_over_the_fresh_ones(toy_spec):
    fresh = module(toy_spec, SEEDS[:2], PLAIN).network
    given = fitted(toy_spec, SEEDS[:2], PLAIN, 3)
    body = [{k: v for k, v in given.get(i).items() if not k.startswith("head.")} for i in range(2)]
    made = module(toy_spec, SEEDS[:2], PLAIN, start=body).network
    for number in range(2):
        for name, value in made.get(number).items():
            if name.endswith("num_batches_tracked"):
                continue
            expected = fresh if name.startswith("head.") else given
            assert torch.equal(value, expected.get(number)[name]), name


def test_fresh_weights_are_those_of_a_classifier_of_the_same_seed(toy_spec):
    made = module(toy_spec, SEEDS, PLAIN).network
    for number, seed in enumerate(SEEDS):
        assert apart(made.get(number), Classifier(CONFIG, toy_spec, seed).network.state_dict()) == 0


def test_weights_of_another_shape_are_refused(toy_spec):
    wider = ClassifierNetwork(8, FEATURES, 0.0, toy_spec).state_dict()
    with pytest.raises(RuntimeError, match="shape"):
        StackedNetwork(2, 4, toy_spec).put(0, wider)


# What a step does


def one_batch(s: int = 2, b: int = 6, u: int = 0, seed: int = 0) -> StackBatch:
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand((s, b, 1, 8, 8), generator=draws) * 2 - 1
    targets = F.one_hot(torch.arange(b) % 3, 3).float().expand(s, b, 3)
    return StackBatch(x, targets, torch.rand((s, u, 1, 8, 8), generator=draws) * 2 - 1 if u else None)


def test_the_loss_is_the_sum_of_the_networks_mean_cross_entropies(toy_spec):
    made, batch = module(toy_spec, (0, 1), PLAIN), one_batch()
    made.train()
    loss = float(made.training_step(batch, 0).detach())
    logits = made.network(batch.images).detach()
    expected = sum(F.cross_entropy(logits[i], batch.targets[i].argmax(1)) for i in range(2))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    soft = torch.rand((2, 6, 3)).softmax(2)
    assert torch.allclose(
        soft_cross_entropy(logits, soft), torch.stack([F.cross_entropy(logits[i], soft[i], reduction="none") for i in range(2)])
    )


def test_label_smoothing_is_that_of_torch(toy_spec):
    made, batch = module(toy_spec, (0, 1), replace(PLAIN, smoothing=0.2)), one_batch()
    made.train()
    loss = float(made.training_step(batch, 0).detach())
    logits = made.network(batch.images).detach()
    expected = sum(F.cross_entropy(logits[i], batch.targets[i].argmax(1), label_smoothing=0.2) for i in range(2))
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("setting", [{"dropout": 0.5}, {"mixing": "mixup"}, {"mixing": "cutmix"}, {"policy": "standard"}])
def test_every_step_draws_anew_and_every_network_for_itself(toy_spec, setting):
    """Networks of equal weights and images differ by their draws alone."""
    made, batch = module(toy_spec, (0, 0), replace(PLAIN, **setting)), one_batch()
    made.seeds = (5, 6)
    same = StackBatch(batch.images[:1].expand(2, -1, -1, -1, -1), batch.targets, None)
    made.train()
    seen = []
    made.network.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    for _ in range(2):
        made.training_step(same, 0)
    assert made.step == 2
    assert not torch.allclose(seen[0][0], seen[0][1])
    assert not torch.allclose(seen[0][0], seen[1][0])


def test_dropout_keeps_the_mean_and_is_off_in_evaluation(toy_spec):
    made, batch = module(toy_spec, (0,), replace(PLAIN, dropout=0.4)), one_batch(1, 200)
    made.train()
    seen = []
    made.network.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    made.training_step(batch, 0)
    features = made.network.features(batch.images).detach()
    kept = seen[0][features > 1e-4] / features[features > 1e-4]
    assert torch.allclose(kept[kept > 0], torch.tensor(1 / 0.6), rtol=1e-3)
    assert float((kept == 0).float().mean()) == pytest.approx(0.4, abs=0.03)
    pixels = images(9)
    network = ClassifierNetwork(4, FEATURES, 0.0, toy_spec)
    network.load_state_dict(made.network.get(0))
    assert np.allclose(stacked_probabilities(made.network, pixels)[0], probabilities(network, pixels), atol=1e-6)


def test_a_setting_overrides_the_classifiers_own(toy_spec):
    config = CONFIG.model_copy(update={"dropout": 0.25, "weight_decay": 0.03, "lr": 0.008})
    as_given = module(toy_spec, (0,), Training(), config)
    assert (as_given.dropout, as_given.config.weight_decay, as_given.config.lr) == (0.25, 0.03, 0.008)
    changed = module(toy_spec, (0,), Training(dropout=0.0, weight_decay=0.0, lr=0.5), config)
    assert (changed.dropout, changed.config.weight_decay, changed.config.lr) == (0.0, 0.0, 0.004)
    optimizer = changed.configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["max_lr"] == pytest.approx(0.004)


# SMOTE


def test_smotes_partner_is_of_the_same_class():
    labels = np.array([0, 1, 0, 2, 1, 0, 1, 1])
    for seed in range(20):
        partner = _of_own_class(labels, np.random.default_rng(seed))
        assert np.array_equal(labels[partner], labels)
        assert sorted(partner) == list(range(8)), "everybody is somebody's partner"
        alone = np.arange(8) == 3
        assert ((partner == np.arange(8)) == alone).all(), "itself only where it is alone in its class"
    assert len({tuple(_of_own_class(labels, np.random.default_rng(seed))) for seed in range(20)}) > 5


def test_smote_mixes_within_a_class_alone(toy_spec):
    """Images of class k are k everywhere: whatever is mixed within a class stays k; and about alpha of them are mixed."""
    made = module(toy_spec, (0, 1), Training(policy="", mixing="smote", alpha=0.25))
    batch = one_batch(2, 300)
    labels = batch.targets.argmax(2)
    flat = labels[:, :, None, None, None].float().expand(2, 300, 1, 8, 8)
    draws = [np.random.default_rng(i) for i in range(2)]
    mixed, targets = made._mixed(flat, batch.targets, draws)
    assert torch.allclose(mixed, flat)
    assert torch.equal(targets, batch.targets)
    mixed, _ = made._mixed(batch.images, batch.targets, [np.random.default_rng(i) for i in range(2)])
    changed = (mixed != batch.images).any(dim=(2, 3, 4)).float().mean(1)
    assert torch.allclose(changed, torch.tensor(0.25), atol=0.08)


# FixMatch


def fixmatch_parts(toy_spec: DatasetSpec, confidence: float) -> tuple[float, Tensor, StackBatch, StackedClassifier]:
    """The loss, the logits that it was made of, the batch, the module."""
    made, batch = module(toy_spec, (0, 1), Training(policy="", confidence=confidence)), one_batch(2, 6, 10)
    made.train()
    seen: list[Tensor] = []
    made.network.head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    loss = made.training_step(batch, 0)
    loss.backward()
    return float(loss.detach()), seen[0].detach(), batch, made


@pytest.mark.parametrize("confidence", [0.0, 0.36, 1.01])
def test_fixmatch_is_the_papers_loss(toy_spec, confidence):
    """Equations 3 and 4, image by image: only where the weak view is sure, and the mean is over all unlabelled images."""
    loss, logits, batch, _ = fixmatch_parts(toy_spec, confidence)
    assert logits.shape == (2, 6 + 10 + 10, 3)
    expected, counted = 0.0, 0
    for s in range(2):
        expected += float(F.cross_entropy(logits[s, :6], batch.targets[s].argmax(1)))
        for i in range(10):
            guess = logits[s, 6 + i].softmax(0)
            if float(guess.max()) >= confidence:
                counted += 1
                expected += float(F.cross_entropy(logits[s, 16 + i], guess.argmax())) / 10
    assert counted == {0.0: 20, 1.01: 0}.get(confidence, counted)
    if confidence == 0.36:
        assert 0 < counted < 20, "the case is to tell them apart"
    assert loss == pytest.approx(expected, rel=1e-4)


def test_fixmatch_that_is_never_sure_learns_from_the_labelled_images_alone(toy_spec):
    """Its gradient is that of the cross-entropy of the labelled part of the same pass."""
    _, _, batch, made = fixmatch_parts(toy_spec, 1.01)
    other = module(toy_spec, (0, 1), Training(policy="", confidence=0.0))
    other.train()
    seen: list[Tensor] = []
    other.network.head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    other.training_step(batch, 0)  # the same pass, and batch norm sees the same images
    sum(F.cross_entropy(seen[0][s, :6], batch.targets[s].argmax(1)) for s in range(2)).backward()
    for (name, mine), theirs in zip(made.network.named_parameters(), other.network.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6), name


def test_fixmatchs_guess_is_no_gradient(toy_spec):
    """The weak view teaches and isn't taught: its logits have no gradient."""
    made, batch = module(toy_spec, (0, 1), Training(policy="", confidence=0.0)), one_batch(2, 6, 10)
    made.train()
    kept: list[Tensor] = []

    def keep(_, __, logits):
        logits.retain_grad()
        kept.append(logits)

    made.network.head.register_forward_hook(keep)
    made.training_step(batch, 0).backward()
    gradient = kept[0].grad
    assert gradient is not None
    assert float(gradient[:, 6:16].abs().max()) == 0
    assert float(gradient[:, :6].abs().max()) > 0
    assert float(gradient[:, 16:].abs().max()) > 0


def test_fixmatchs_strong_view_is_the_stronger(toy_spec, monkeypatch):
    asked = []
    made, batch = module(toy_spec, (0,), Training(policy="", confidence=0.5)), one_batch(1, 6, 10)
    original = made._augmented
    monkeypatch.setattr(made, "_augmented", lambda x, d, policy: asked.append((policy, x.shape[1])) or original(x, d, policy))
    made.train()
    made.training_step(batch, 0)
    assert asked == [("", 6), ("standard", 10), ("randaugment", 10), ("cutout", 10)]
    assert all(not policy or policy in POLICIES for policy, _ in asked)


def test_what_is_learnt_is_learnt(toy_spec, toy):
    """60 steps on 24 images of three patterns."""
    config = CONFIG.model_copy(update={"steps": 60})
    made = module(toy_spec, (0, 1), Training(), config)
    whole = Stack([Source.shared(toy.images, one_hot(toy.labels, 3), 2, 12)], (0, 1))
    fit(made, whole, steps=60, seed=0, task="x", progress=Silent())
    found = stacked_probabilities(made.network, toy.images).argmax(2) == toy.labels
    assert (found.mean(1) > 0.9).all()
