"""What is looked at in training, on real digits: copies are seen, FID is taken against the reference, nothing is changed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    assert looker.picture() == b""


def test_the_picture_of_a_look_is_the_first_samples_of_each_class(looker):
    images = looker.held_out.images
    looker(Returns(looker, images).module, 1)
    first = looker.picture()
    picture = np.asarray(Image.open(io.BytesIO(first)))
    assert picture.shape == (10 * 32, 10 * 32), "ten of each of ten classes, 8 pixels enlarged to 32"
    assert len(looker.labels) == 100
    for row, label in enumerate(np.unique(looker.labels)):
        drawn = np.flatnonzero(looker.labels == label)[:10]
        for column, index in enumerate(drawn):
            seen = picture[32 * row : 32 * (row + 1) : 4, 32 * column : 32 * (column + 1) : 4]
            assert (seen == images[index % len(images), 0]).all()
    looker(Returns(looker, images).module, 2)
    assert looker.picture() == first
    looker(Returns(looker, 255 - images).module, 3)
    assert looker.picture() != first


def test_of_several_averages_the_picture_is_that_of_the_chosen_one(looker):
    module = Returns(looker, looker.held_out.images).module
    module.held_out_loss = lambda images, labels: None  # then the samples choose
    good, noise = looker.held_out.images, np.zeros_like(looker.held_out.images)
    networks = module.ema.networks
    module.ema.networks, module.ema.decays = torch.nn.ModuleList([networks[0], networks[0]]), (0.9, 0.99)
    module.sample = lambda labels, drawn: to_float(torch.from_numpy((good, noise)[module.ema.chosen][drawn.indices % len(good)]))
    looker(module, 1)
    assert module.ema.chosen == 0
    assert (looker.seen.images == good[np.arange(100) % len(good)]).all()
