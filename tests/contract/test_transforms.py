"""Transforms: uint8 comes back exactly; augmentation is reproducible and does what its settings say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen.config.schema import AugmentConfig
from synthgen.data.transforms import augment, to_float, to_uint8
from synthgen.errors import TrainingError
from synthgen.randomness import stream

NOTHING = AugmentConfig(flip=False, shift_px=0, rotate_deg=0, scale=0, contrast=0)
EVERYTHING = AugmentConfig(flip=True, shift_px=2, rotate_deg=20, scale=0.2, contrast=0.3)


def pictures(b: int = 16, c: int = 3, size_px: int = 12) -> Tensor:
    return to_float(np.random.default_rng(0).integers(0, 256, (b, c, size_px, size_px), dtype=np.uint8))


def test_every_level_comes_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    floats = to_float(levels)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), torch.from_numpy(levels))
    assert torch.equal(to_float(torch.from_numpy(levels)), floats)


def test_out_of_range_is_clamped_and_nan_is_refused():
    image = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert to_uint8(image).flatten().tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(TrainingError, match="NaN or infinity"):
        to_uint8(torch.full((1, 1, 8, 8), float("nan")))


def test_the_same_stream_gives_the_same_images():
    images = pictures()
    one, two, other = (augment(images, stream(0, "augment", i), EVERYTHING) for i in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], images[0])
    assert one.min() >= -1
    assert one.max() <= 1


def test_nothing_changes_nothing():
    images = pictures()
    assert augment(images, stream(0, "augment"), NOTHING) is images
    still = augment(images, stream(0, "augment"), EVERYTHING, amount=torch.zeros(16))
    assert torch.allclose(still, images, atol=1e-5)


def test_settings_do_not_change_how_many_numbers_are_drawn():
    one, two = stream(0, "augment"), stream(0, "augment")
    augment(pictures(), one, NOTHING)
    augment(pictures(), two, EVERYTHING)
    assert one.random() == two.random()


def test_flip_mirrors_about_half_of_the_images():
    images = pictures(b=200)
    flipped = augment(images, stream(0, "augment"), NOTHING.model_copy(update={"flip": True}))
    mirrored = torch.tensor([torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)])
    same = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 70 < int(mirrored.sum()) < 130


def spot(size_px: int = 33) -> Tensor:
    """A white spot right of the centre of 100 black images."""
    images = torch.full((100, 1, size_px, size_px), -1.0)
    images[:, :, size_px // 2 - 1 : size_px // 2 + 2, size_px // 2 + 7 : size_px // 2 + 10] = 1
    return images


def centres(images: Tensor) -> np.ndarray:
    """(x, y) of the spot from the image's centre, in pixels, for each image."""
    mass = (images[:, 0] + 1).double()
    axis = torch.arange(images.shape[-1]).double() - images.shape[-1] // 2
    total = mass.sum((1, 2))
    return torch.stack([(mass.sum(1) * axis).sum(1) / total, (mass.sum(2) * axis).sum(1) / total], 1).numpy()


def test_shifts_are_uniform_up_to_their_largest():
    moved = centres(augment(spot(), stream(0, "augment"), NOTHING.model_copy(update={"shift_px": 3.0}))) - [8, 0]
    assert np.abs(moved).max() <= 3.0 + 1e-3
    assert np.abs(moved).max(axis=0).min() > 2.5
    assert np.abs(moved.mean(axis=0)).max() < 0.6


def test_rotation_keeps_the_distance_and_scale_changes_it():
    turned = centres(augment(spot(), stream(0, "augment"), NOTHING.model_copy(update={"rotate_deg": 30.0})))
    angle = np.rad2deg(np.arctan2(turned[:, 1], turned[:, 0]))
    np.testing.assert_allclose(np.hypot(*turned.T), 8, atol=0.1)
    assert 25 < np.abs(angle).max() <= 30.5
    grown = centres(augment(spot(), stream(0, "augment"), NOTHING.model_copy(update={"scale": 0.2})))
    assert 6.3 < grown[:, 0].min() < 6.9
    assert 9.1 < grown[:, 0].max() < 9.7
    np.testing.assert_allclose(grown[:, 1], 0, atol=0.1)


def test_what_comes_in_over_the_edge_repeats_the_edge():
    images = torch.full((8, 1, 8, 8), 0.25)
    moved = augment(images, stream(0, "augment"), EVERYTHING.model_copy(update={"contrast": 0.0}))
    assert torch.allclose(moved, images, atol=1e-5)


def test_contrast_keeps_the_mean():
    images = 0.5 * pictures(b=50)
    changed = augment(images, stream(0, "augment"), NOTHING.model_copy(update={"contrast": 0.4}))
    ratio = changed.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert torch.allclose(changed.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-4)
    assert 0.59 < float(ratio.min()) < 0.75
    assert 1.25 < float(ratio.max()) < 1.41
