"""Which look's weights are kept, and when training stops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from synthgen import models, training
from synthgen.choice import Choice, Finding
from synthgen.errors import TrainingError
from synthgen.jobs.looks import look_steps
from synthgen.models.base import to_bytes
from synthgen.training import Looks
from synthgen.types import Silent


def choose(*findings: Finding, tolerance: float = 2.0) -> Choice:
    choice = Choice(tolerance)
    for finding in findings:
        choice.consider(finding, lambda step=finding.step: {"step": step})
    return choice


def losses(mean: float, spread: float = 0.1) -> np.ndarray:
    return mean + spread * np.linspace(-1, 1, 50)


def test_the_lowest_score_is_kept_and_the_later_of_equals():
    choice = choose(Finding(1, {}, 3.0), Finding(2, {}, 1.0), Finding(3, {}, 1.0), Finding(4, {}, 2.0))
    assert choice.weights == {"step": 3}
    assert not choice.stopped


def test_a_network_that_can_only_be_scored_as_infinite_is_never_kept():
    assert choose(Finding(1, {}, math.inf)).kept is None
    assert choose(Finding(1, {}, 2.0), Finding(2, {}, math.inf)).kept == 0


def test_a_better_score_with_a_worse_held_out_loss_is_not_kept():
    varied = losses(1.0) + np.random.default_rng(0).normal(0, 0.02, 50) + 0.3
    assert choose(Finding(1, {}, 3.0, losses(1.0)), Finding(2, {}, 1.0, varied)).kept == 0
    assert choose(Finding(1, {}, 3.0, losses(1.0)), Finding(2, {}, 1.0, varied), tolerance=200.0).kept == 1


def test_what_was_kept_goes_when_a_later_look_shows_that_it_overfits():
    """Its loss was the lowest when it was taken; one with a worse score but a far lower loss takes its place."""
    noise = np.random.default_rng(0).normal(0, 0.02, 50)
    assert choose(Finding(1, {}, 1.0, losses(1.0)), Finding(2, {}, 5.0, losses(0.5) + noise)).kept == 1


def test_copying_stops_training_and_is_not_kept():
    choice = choose(Finding(1, {}, 3.0), Finding(2, {}, 0.1, None, "9% of the samples are copies"))
    assert choice.kept == 0
    assert choice.stopped == "9% of the samples are copies"


def test_a_collapse_is_two_looks_in_a_row_far_below_the_best_recall():
    def recalls(*values: float) -> Choice:
        return choose(*(Finding(step, {"recall": value}, 1.0) for step, value in enumerate(values)))

    assert recalls(0.1, 0.8, 0.1, 0.15).stopped == "recall collapsed from 0.80 to 0.15"
    assert not recalls(0.1, 0.8, 0.1).stopped
    assert not recalls(0.1, 0.8, 0.1, 0.3).stopped
    assert not recalls(0.15, 0.0, 0.0).stopped, "it never had any recall"


def test_a_divergence_is_samples_that_are_not_finite_or_a_held_out_loss_above_the_first():
    assert choose(Finding(1, {}, 2.0), Finding(2, {}, math.inf)).stopped == "samples are not finite at step 2"
    assert not choose(Finding(1, {}, math.inf), Finding(2, {}, 2.0)).stopped
    means = (1.0, 0.5, 0.9, 1.2, 1.4)
    findings = [Finding(step, {}, 1.0, losses(mean)) for step, mean in enumerate(means)]
    assert not choose(*findings[:4]).stopped
    assert choose(*findings).stopped == "the held-out loss rose to 1.4, above the 1 of the first look"


def test_it_comes_back_from_its_state():
    choice = choose(Finding(1, {"fid": 2.0}, 3.0, losses(1.0)), Finding(2, {"fid": 1.0}, 1.0, losses(0.9)))
    again = Choice(2.0)
    again.load_state_dict(choice.state_dict())
    assert again.kept == choice.kept
    assert again.weights == choice.weights
    assert [f.values for f in again.findings] == [f.values for f in choice.findings]
    assert np.array_equal(again.findings[1].losses, choice.findings[1].losses)


@pytest.mark.parametrize(
    ("steps", "times", "expected"), [(450, 6, (75, 150, 225, 300, 375, 450)), (3, 6, (1, 2, 3)), (9, 1, (9,))]
)
def test_looks_are_evenly_spread_and_the_last_step_is_one(steps, times, expected):
    assert look_steps(steps, times) == expected


# In training


def fit(tiny, toy, toy_spec, look, steps=9, folder=None, progress=None):
    own = tiny.generators.vae.model_copy(update={"steps": steps})
    module = models.build(own, toy_spec, tiny.augment, seed=0)
    settings = {"steps": steps, "seed": 0, "task": "vae", "folder": folder, "save_every_s": 0.0}
    looks = Looks(look, (3, 6, 9)) if look else None
    return module, training.fit(module, [(toy, 8)], progress=progress or Silent(), looks=looks, **settings)


def scored(scores: dict[int, float], stop_at: int = 0):
    return lambda module, step: Finding(step, {"recall": 1.0}, scores[step], None, "it copies" if step == stop_at else "")


def test_training_leaves_with_the_weights_of_the_best_look(tiny, toy, toy_spec):
    module, done = fit(tiny, toy, toy_spec, scored({3: 2.0, 6: 1.0, 9: 3.0}))
    assert (done.step, module.step, done.stopped) == (6, 6, "")
    last, _ = fit(tiny, toy, toy_spec, scored({3: 3.0, 6: 2.0, 9: 1.0}))
    untouched, _ = fit(tiny, toy, toy_spec, None)
    assert to_bytes(last) == to_bytes(untouched), "a look changes nothing"
    assert to_bytes(module) != to_bytes(last)


def test_training_stops_at_a_reason_and_says_it(tiny, toy, toy_spec):
    _, done = fit(tiny, toy, toy_spec, scored({3: 2.0, 6: 1.0}, stop_at=6))
    assert done.stopped == "it copies"
    assert done.step == 3
    assert done.losses[-1][0] == 6
    assert [look.step for look in done.looks] == [3, 6]


def test_a_loss_that_is_not_finite_keeps_the_last_good_look(tiny, toy, toy_spec, monkeypatch):
    step = models.VAE.training_step

    def broken(self, batch, i):
        return step(self, batch, i) * (float("nan") if self.step >= 7 else 1.0)

    monkeypatch.setattr(models.VAE, "training_step", broken)
    module, done = fit(tiny, toy, toy_spec, scored({3: 2.0, 6: 1.0}))
    assert done.stopped == "the loss is nan at step 8"
    assert done.step == 6
    assert all(torch.isfinite(p).all() for p in module.parameters())
    with pytest.raises(TrainingError, match="vae: the loss is nan at step 8"):
        fit(tiny, toy, toy_spec, None)


@pytest.mark.parametrize("stop_at", [0, 9])
def test_a_killed_training_keeps_the_same_look(stop_at, tiny, toy, toy_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EPOCH", 2)
    look = scored({3: 1.0, 6: 2.0, 9: 3.0}, stop_at)
    whole, whole_fit = fit(tiny, toy, toy_spec, look)

    class Killed(Exception):
        pass

    class Kill(Silent):
        def advance(self, task, steps=1, note=""):
            object.__setattr__(self, "seen", getattr(self, "seen", 0) + steps)
            if self.seen == 8:
                raise Killed

    with pytest.raises(Killed):
        fit(tiny, toy, toy_spec, look, folder=tmp_path, progress=Kill())
    resumed, resumed_fit = fit(tiny, toy, toy_spec, look, folder=tmp_path)
    assert to_bytes(resumed) == to_bytes(whole)
    assert (resumed_fit.step, resumed_fit.stopped, resumed_fit.losses) == (3, whole_fit.stopped, whole_fit.losses)
    assert [look.step for look in resumed_fit.looks] == [3, 6, 9]
