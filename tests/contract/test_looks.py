"""What is looked at in training, on real digits: copies are seen, FID is taken against the reference, nothing is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen import jobs, models
from synthgen.config.load import load
from synthgen.data.transforms import to_float
from synthgen.jobs.looks import Looker
from synthgen.models.base import to_bytes

FEW = ["features.steps=40", "features.defect_steps=0", "generators.vae.steps=2", "generators.diffusion.steps=2", "looks.num=100"]


@pytest.fixture(scope="module")
def looker(tmp_path_factory) -> Looker:
    torch.set_num_threads(1)
    out: Path = tmp_path_factory.mktemp("looks")
    order = jobs.Order(load("digits-smoke", FEW))
    jobs.audit(order, out)
    split = jobs.Split.open(out)
    jobs.features(order, split, out / "features")
    return Looker(order, split, out / "features")


class Returns:
    """A generator that gives images of its own, one a sample, whatever the labels."""

    def __init__(self, looker: Looker, images: np.ndarray, tmp: str = "vae") -> None:
        order = looker.order
        self.module = models.build(getattr(order.config.generators, tmp), looker.spec, order.config.augment)
        self.module.sample = lambda labels, noise: to_float(torch.from_numpy(images[noise.indices % len(images)]))


def test_a_copier_is_told_to_stop(looker):
    finding = looker(Returns(looker, looker.train.images).module, 7)
    assert finding.stop.startswith("100% of the samples at step 7 are copies of training images, at most 5%")
    assert finding.values["copy_share"] == 1


def test_real_images_score_better_than_noise_and_are_no_copies(looker):
    good = looker(Returns(looker, looker.held_out.images).module, 1)
    noise = np.random.default_rng(0).integers(0, 256, looker.held_out.images.shape).astype(np.uint8)
    bad = looker(Returns(looker, noise).module, 1)
    assert good.score < 0.5 * bad.score
    assert good.values["recall"] > bad.values["recall"]
    assert good.values["copy_share"] <= 0.03
    assert not good.stop


def test_a_look_changes_nothing_and_is_the_same_again(looker):
    config = looker.order.config
    module = models.build(config.generators.diffusion, looker.spec, config.augment).eval()
    before = to_bytes(module)
    first, second = looker(module, 3), looker(module, 3)
    assert to_bytes(module) == before
    assert first.values == second.values
    assert first.values["held_out_loss"] == pytest.approx(float(first.losses.mean()), abs=1e-5)
    assert len(first.losses) == 50


def test_of_several_averages_the_one_with_the_lowest_held_out_loss_is_chosen(looker):
    config = looker.order.config
    module = models.build(config.generators.diffusion.model_copy(update={"ema": (0.9, 0.99)}), looker.spec, config.augment).eval()
    for parameter in module.ema.networks[0].unet.conv_out.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    assert looker(module, 1).values["average"] == 0.99
    assert module.ema.chosen == 1


def test_samples_that_are_not_finite_are_never_the_best(looker):
    module = Returns(looker, looker.train.images).module
    module.sample = lambda labels, noise: torch.full((len(labels), 1, 8, 8), float("nan"))
    assert looker(module, 1).score == float("inf")
