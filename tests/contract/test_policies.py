"""Augmentation policies and mixtures: each image by its own numbers, each operation by hand, each target by its area."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from synthgen.config.schema import AugmentConfig
from synthgen.data import policies, transforms
from synthgen.data.mixing import cutmix, mixup, smote
from synthgen.data.policies import INTENSITY, LARGEST, POLICIES, allowed
from synthgen.randomness import stream

LIMITS = AugmentConfig(flip=True, shift_px=2, rotate_deg=20, scale=0.2, contrast=0.3)
NOTHING = AugmentConfig(flip=False, shift_px=0, rotate_deg=0, scale=0, contrast=0)
SHAPES = [(1, 8, 8), (3, 32, 32), (3, 5, 7)]


def pictures(b: int, shape: tuple[int, ...] = (3, 12, 12), seed: int = 0) -> Tensor:
    return transforms.to_float(np.random.default_rng(seed).integers(0, 256, (b, *shape), dtype=np.uint8))


def numbers(policy: str, b: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((POLICIES[policy].NUMBERS, b), dtype=np.float32)


def drawn(config: AugmentConfig, channels: int, *operations: str, b: int = 1, negative: bool = False) -> np.ndarray:
    """Numbers with which RandAugment takes these operations, and neither mirrors nor shifts first."""
    names = allowed(config, channels)
    first = [0.9, 0.5, 0.5]
    which = [(names.index(name) + 0.5) / len(names) for name in operations]
    sign = [0.2 if negative else 0.8] * len(operations)
    return np.repeat(np.array([first + which + sign], np.float32).T, b, axis=1)


def randaugmented(
    images: Tensor, config: AugmentConfig, *operations: str, strength: float = 1.0, negative: bool = False
) -> Tensor:
    uniform = drawn(config, images.shape[1], *operations, b=len(images), negative=negative)
    return POLICIES["randaugment"].apply(images, uniform, strength, config)


# Every policy


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_images_stay_images(name, shape, strength):
    images = pictures(40, shape)
    before = images.clone()
    changed = POLICIES[name].apply(images, numbers(name, 40), strength, LIMITS)
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert bool(torch.isfinite(changed).all())
    assert float(changed.abs().max()) <= 1
    assert torch.equal(images, before)
    same = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert sum(same) <= 2


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_depends_on_its_own_numbers_alone(name, shape):
    """To the bit: in one call, in parts, one by one, in another order; with one strength for all or one each."""
    images, uniform, apply = pictures(37, shape), numbers(name, 37), POLICIES[name].apply
    at_once = apply(images, uniform, 1.0, LIMITS)
    for cuts in ([0, 1, 3, 20, 37], list(range(38))):
        parts = [apply(images[i:j], uniform[:, i:j], 1.0, LIMITS) for i, j in pairwise(cuts)]
        assert torch.equal(torch.cat(parts), at_once)
    order = np.random.default_rng(1).permutation(37)
    assert torch.equal(apply(images[order], uniform[:, order], 1.0, LIMITS), at_once[order])
    strengths = np.where(np.arange(37) < 20, 1.0, 2.0).astype(np.float32)
    of_each = apply(images, uniform, strengths, LIMITS)
    assert torch.equal(of_each[:20], at_once[:20])
    assert torch.equal(of_each[20:], apply(images[20:], uniform[:, 20:], 2.0, LIMITS))


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_strength_0_changes_nothing(name):
    images = pictures(30)
    assert torch.equal(POLICIES[name].apply(images, numbers(name, 30), 0.0, LIMITS), images)


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "standard"])
def test_strength_is_a_dial(name):
    images = pictures(200, (1, 8, 8))
    config = LIMITS.model_copy(update={"flip": False, "shift_px": 0.0})
    distance = [
        float((POLICIES[name].apply(images, numbers(name, 200), s, config) - images).square().mean())
        for s in (0.25, 0.5, 1.0, 2.0)
    ]
    assert distance == sorted(distance)
    assert distance[0] < 0.8 * distance[-1]


def test_what_the_limits_rule_out_is_not_done():
    images = pictures(60)
    for name in ("randaugment", "trivialaugment", "standard"):
        assert torch.equal(POLICIES[name].apply(images, numbers(name, 60), 2.0, NOTHING), images)
    assert allowed(NOTHING, 3) == ("identity",)
    assert set(LARGEST) - set(allowed(LIMITS, 1)) == {"colour"}
    assert allowed(LIMITS, 3) == tuple(LARGEST)
    upright = NOTHING.model_copy(update={"scale": 0.1, "shift_px": 1.0})
    assert allowed(upright, 1) == ("identity", "shift_x", "shift_y", "scale")


def test_operations_are_drawn_alike_and_the_last_number_is_one_of_them(monkeypatch):
    seen: list[int] = []
    plain = policies._recoloured

    def noted(images, names, chosen, amount):
        seen.extend(chosen)
        return plain(images, names, chosen, amount)

    monkeypatch.setattr(policies, "_recoloured", noted)
    uniform = numbers("trivialaugment", 3000)
    uniform[3, 0] = np.nextafter(np.float32(1), np.float32(0))
    POLICIES["trivialaugment"].apply(pictures(3000, (3, 4, 4)), uniform, 1.0, LIMITS)
    assert seen[0] == len(LARGEST) - 1
    counts = np.bincount(seen, minlength=len(LARGEST))
    assert len(counts) == 15
    assert 140 < counts.min() <= counts.max() < 260


# Standard


@pytest.mark.parametrize("shape", SHAPES)
def test_standard_is_augment_to_the_bit(shape):
    images = pictures(64, shape)
    uniform = stream(5, "augment").random((6, 64), dtype=np.float32)
    expected = transforms.augment(images, stream(5, "augment"), LIMITS)
    assert torch.equal(POLICIES["standard"].apply(images, uniform, 1.0, LIMITS), expected)
    half = transforms.augment(images, stream(5, "augment"), LIMITS.model_copy(update={"flip": False}), torch.full((64,), 0.5))
    assert torch.equal(POLICIES["standard"].apply(images, uniform, 0.5, LIMITS.model_copy(update={"flip": False})), half)


def test_a_strength_changes_amounts_but_not_how_many_are_mirrored():
    images = pictures(400, (1, 8, 8))
    only_flip = NOTHING.model_copy(update={"flip": True})
    for name in ("standard", "randaugment", "trivialaugment"):
        weak, strong = (POLICIES[name].apply(images, numbers(name, 400), s, only_flip) for s in (0.5, 2.0))
        assert torch.equal(weak, strong)
        assert torch.allclose(POLICIES[name].apply(images, numbers(name, 400), 0.0, only_flip), images, atol=1e-5)
        mirrored = sum(torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(weak, images, strict=True))
        assert 160 < mirrored < 240


# Geometry by hand


def test_whole_pixels_quarter_turns_and_shears():
    images = pictures(4, (1, 32, 32))
    edge = images[..., -1:].expand(-1, -1, -1, 3)
    right = torch.cat([images[..., 3:], edge], dim=3)
    assert torch.allclose(randaugmented(images, LIMITS, "identity", "shift_x"), right, atol=2e-5)
    assert torch.allclose(randaugmented(images.mT, LIMITS, "shift_y", "identity"), right.mT, atol=2e-5)
    left = torch.cat([images[..., :1].expand(-1, -1, -1, 3), images[..., :-3]], dim=3)
    assert torch.allclose(randaugmented(images, LIMITS, "shift_x", "identity", negative=True), left, atol=2e-5)
    turned = randaugmented(images, LIMITS, "rotate", "identity", strength=10.0)
    assert torch.allclose(turned, torch.rot90(images, 1, (2, 3)), atol=2e-4)
    slope = 1 / 0.09
    sheared = randaugmented(images[..., :31, :31], LIMITS, "shear_x", "identity", strength=slope)
    along = np.clip(np.arange(31)[None, :] + np.arange(31)[:, None] - 15, 0, 30)
    expected = images[:, 0, torch.arange(31)[:, None], torch.from_numpy(along)]
    assert torch.allclose(sheared[:, 0], expected, atol=2e-4)


def test_two_moves_are_one_resampling_in_the_order_drawn():
    images = pictures(3, (1, 32, 32))
    shift, turn = transforms.affine(images.shape, x_px=3.0), transforms.affine(images.shape, angle=np.pi / 2)
    shifted, whole = transforms.resample(images, shift), np.broadcast_to(np.array([0, 0, 1], np.float32), (3, 1, 3))
    one_by_one = transforms.resample(shifted, turn)
    assert torch.allclose(transforms.resample(images, shift @ np.concatenate([turn, whole], axis=1)), one_by_one, atol=2e-4)
    shift, turn = transforms.affine(images.shape, x_px=15.0), transforms.affine(images.shape, angle=np.pi / 4)
    both = randaugmented(images, LIMITS, "shift_x", "rotate", strength=5.0)
    expected = transforms.resample(images, shift @ np.concatenate([turn, whole], axis=1))
    assert torch.allclose(both, expected, atol=2e-4)
    assert not torch.allclose(both, randaugmented(images, LIMITS, "rotate", "shift_x", strength=5.0), atol=0.1)


# Intensities by hand


def levels(*values: int, c: int = 1) -> Tensor:
    """One image of 2x2 pixels a row of four levels."""
    return transforms.to_float(np.array(values, np.uint8).reshape(-1, c, 2, 2))


def by_hand(name: str, images: Tensor, amount: float) -> list[float]:
    changed = INTENSITY[name](images, torch.full((len(images), 1, 1, 1), amount))
    return [round(v, 3) for v in ((changed + 1) * 127.5).flatten().tolist()]


def test_intensities_of_grey_images():
    image = levels(0, 100, 200, 40)  # mean 85
    assert by_hand("brightness", image, 0.5) == [0, 150, 255, 60]
    assert by_hand("brightness", image, -0.5) == [0, 50, 100, 20]
    assert by_hand("contrast", image, 0.2) == [0, 103, 223, 31]
    assert by_hand("contrast", image, -1.0) == [85, 85, 85, 85]
    assert by_hand("posterize", image, 4.0) == [0, 96, 192, 32]
    assert by_hand("posterize", image, 1.2) == [0, 100, 200, 40]
    assert by_hand("posterize", levels(1, 101, 201, 255), 1.2) == [0, 100, 200, 254]
    assert by_hand("solarize", image, 0.5) == [0, 100, 55, 40]
    assert by_hand("solarize", image, 1.0) == [255, 155, 55, 215]
    assert by_hand("autocontrast", levels(50, 100, 150, 100), 0.0) == [0, 127.5, 255, 127.5]
    assert by_hand("autocontrast", levels(50, 50, 50, 50), 0.0) == [50, 50, 50, 50]
    assert by_hand("equalize", levels(10, 20, 20, 250), 0.0) == [0, 85, 85, 255]  # 0, 1, 1, 3 of 3 pixels below
    assert by_hand("equalize", levels(50, 50, 50, 50), 0.0) == [50, 50, 50, 50]


def test_sharpness_smooths_the_inside():
    image = torch.full((1, 1, 3, 3), -1.0)
    image[0, 0, 1, 1] = 1
    smoothed = INTENSITY["sharpness"](image, torch.full((1, 1, 1, 1), -1.0))
    assert float(smoothed[0, 0, 1, 1]) == pytest.approx((5 - 8) / 13)
    edge = torch.ones(3, 3, dtype=torch.bool)
    edge[1, 1] = False
    assert torch.equal(smoothed[0, 0][edge], image[0, 0][edge])


def test_saturation_and_channels_of_their_own():
    image = levels(255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, c=3)  # red
    assert by_hand("colour", image, -1.0) == [76.245] * 12
    assert by_hand("colour", image, 0.0) == [255] * 4 + [0] * 8
    two = levels(50, 100, 150, 100, 0, 0, 0, 0, 10, 20, 20, 250, c=3)
    assert by_hand("autocontrast", two, 0.0)[:8] == [0, 127.5, 255, 127.5, 0, 0, 0, 0]
    assert by_hand("equalize", two, 0.0)[8:] == [0, 85, 85, 255]


def test_levels_of_the_paper():
    """Level 9 of 30: brightness by 0.27, one bit less, from 178.5 on turned over; strength 2 is level 18."""
    only = NOTHING.model_copy(update={"contrast": 0.1})
    image = levels(0, 100, 178, 179)
    for strength, brighter in ((1.0, 127), (2.0, 154)):
        changed = randaugmented(image, only, "identity", "brightness", strength=strength)
        assert ((changed + 1) * 127.5).flatten().tolist()[1] == pytest.approx(brighter, abs=1e-3)
    darker = randaugmented(image, only, "brightness", "identity", negative=True)
    assert ((darker + 1) * 127.5).flatten().tolist()[1] == pytest.approx(73, abs=1e-3)
    turned = randaugmented(image, only, "identity", "solarize", negative=True)
    assert ((turned + 1) * 127.5).round().flatten().tolist() == [0, 100, 178, 76]
    twice = randaugmented(image, only, "solarize", "brightness")
    assert ((twice + 1) * 127.5).flatten().tolist() == pytest.approx([0, 127, 226.06, 96.52], abs=1e-2)


def test_trivialaugment_draws_its_level():
    """A fifth of the way: brightness by 0.18; twice that at strength 2."""
    only = NOTHING.model_copy(update={"contrast": 0.1})
    names = allowed(only, 1)
    which = (names.index("brightness") + 0.5) / len(names)
    uniform = np.array([0.9, 0.5, 0.5, which, 0.8, 0.2], np.float32)[:, None]
    for strength, brighter in ((1.0, 118), (2.0, 136)):
        changed = POLICIES["trivialaugment"].apply(levels(0, 100, 200, 250), uniform, strength, only)
        assert ((changed + 1) * 127.5).flatten().tolist()[1] == pytest.approx(brighter, abs=1e-3)


# Cutout


def test_cutout_fills_half_of_each_side_with_the_mean():
    images = pictures(1, (3, 8, 8))
    uniform = np.full((8, 1), 0.5, np.float32)
    cut = POLICIES["cutout"].apply(images, uniform, 1.0, NOTHING)
    expected = images.clone()
    expected[:, :, 2:6, 2:6] = images.mean((2, 3))[:, :, None, None]
    assert torch.equal(cut, expected)
    uniform[6:] = 0.0  # a corner: a quarter of the square is inside
    inside = (POLICIES["cutout"].apply(images, uniform, 1.0, NOTHING) != images).any(1)[0]
    assert inside[:2, :2].all()
    assert int(inside.sum()) == 4
    assert torch.equal(POLICIES["cutout"].apply(images, uniform, 0.0, NOTHING), images)
    twice = (POLICIES["cutout"].apply(images, np.full((8, 1), 0.5, np.float32), 2.0, NOTHING) != images).any(1)
    assert int(twice.sum()) == 64


def test_cutout_is_standard_elsewhere():
    images, uniform = pictures(20, (1, 8, 8)), numbers("cutout", 20)
    plain = POLICIES["standard"].apply(images, uniform[:6], 1.0, LIMITS)
    assert torch.equal(POLICIES["cutout"].apply(images, uniform, 0.0, LIMITS), plain)
    changed = POLICIES["cutout"].apply(images, uniform, 1.0, LIMITS) != plain
    assert 0 < int(changed.sum((1, 2, 3)).max()) <= 16


# Mixtures


def batches(s: int = 2, b: int = 4, shape: tuple[int, ...] = (1, 8, 8), k: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.stack([pictures(b, shape, seed=i) for i in range(s)])
    labels = torch.arange(s * b).reshape(s, b) % k
    partner = torch.stack([torch.arange(b).roll(1 + i) for i in range(s)])
    return images, torch.nn.functional.one_hot(labels, k).float(), partner


@pytest.mark.parametrize("shape", SHAPES)
def test_mixup_mixes_each_network_by_its_own_share(shape):
    images, targets, partner = batches(shape=shape)
    mixed, soft = mixup(images, targets, torch.tensor([1.0, 0.25]), partner)
    assert torch.equal(mixed[0], images[0])
    assert torch.equal(soft[0], targets[0])
    for row in range(4):
        other = int(partner[1, row])
        assert torch.allclose(mixed[1, row], 0.25 * images[1, row] + 0.75 * images[1, other], atol=1e-6)
        assert torch.allclose(soft[1, row], 0.25 * targets[1, row] + 0.75 * targets[1, other])


def test_cutmix_by_hand():
    images, targets, partner = batches()
    partner[:] = torch.tensor([1, 2, 3, 0])
    share, centre = torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 0.99]])
    mixed, soft = cutmix(images, targets, share, centre, partner)
    expected = images.clone()
    expected[0, :, :, 2:6, 2:6] = images[0, partner[0], :, 2:6, 2:6]  # half of each side, in the middle
    expected[1, :, :, 0:2, 5:8] = images[1, partner[1], :, 0:2, 5:8]  # cut off at the frame: 2 rows, 3 columns
    assert torch.equal(mixed, expected)
    for network, area in ((0, 16 / 64), (1, 6 / 64)):
        wanted = (1 - area) * targets[network] + area * targets[network, partner[network]]
        assert torch.allclose(soft[network], wanted, atol=1e-6)


def test_cutmix_counts_the_pixels_it_took():
    """Targets by the area, at any share and centre, on frames that aren't square."""
    s, rng = 60, np.random.default_rng(0)
    images = torch.arange(2.0)[None, :, None, None, None].expand(s, 2, 3, 5, 7)
    targets = torch.eye(2).expand(s, 2, 2)
    share = torch.from_numpy(rng.beta(1, 1, s).astype(np.float32))
    centre = torch.from_numpy(rng.random((s, 2), dtype=np.float32))
    mixed, soft = cutmix(images, targets, share, centre, torch.tensor([[1, 0]]).expand(s, 2))
    assert torch.allclose(mixed[:, 0].mean((1, 2, 3)), soft[:, 0, 1], atol=1e-6)
    assert torch.allclose(mixed[:, 1].mean((1, 2, 3)), soft[:, 1, 1], atol=1e-6)
    assert torch.allclose(soft.sum(2), torch.ones(s, 2))
    assert 0.2 < float(soft[:, 0, 1].mean()) < 0.45  # a half, less what lies outside
    whole, _ = cutmix(images, targets, torch.zeros(s), torch.full((s, 2), 0.5), torch.tensor([[1, 0]]).expand(s, 2))
    assert torch.equal(whole, images.flip(1))


def test_smote_goes_towards_the_partner_and_keeps_the_class():
    images, targets, _ = batches(b=6)
    labels = targets.argmax(2)
    partner = torch.stack([torch.tensor([int((row == label).nonzero()[-1]) for label in row]) for row in labels])
    share = torch.linspace(0, 1, 12).reshape(2, 6)
    mixed, same = smote(images, targets, share, partner)
    assert torch.equal(same, targets)
    assert torch.equal(mixed[0, 0], images[0, 0])
    for network in range(2):
        for row in range(6):
            other, t = int(partner[network, row]), float(share[network, row])
            assert labels[network, other] == labels[network, row]
            assert torch.allclose(mixed[network, row], (1 - t) * images[network, row] + t * images[network, other], atol=1e-6)


def test_networks_are_mixed_apart():
    images, targets, partner = batches(s=3)
    share, centre = torch.tensor([0.2, 0.5, 0.9]), torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    together = mixup(images, targets, share, partner), cutmix(images, targets, share, centre, partner)
    for i in range(3):
        own = slice(i, i + 1)
        alone = (
            mixup(images[own], targets[own], share[own], partner[own]),
            cutmix(images[own], targets[own], share[own], centre[own], partner[own]),
        )
        for (x, t), (y, u) in zip(together, alone, strict=True):
            assert torch.equal(x[own], y)
            assert torch.equal(t[own], u)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", POLICIES)
def test_a_gpu_does_the_same(name):
    images, uniform = pictures(64), numbers(name, 64)
    here, there = (POLICIES[name].apply(x, uniform, 1.0, LIMITS).cpu() for x in (images, images.cuda()))
    # a level on the edge of a step (posterize, solarize, equalize) may fall on its other side
    assert float(((here - there).abs() > 1e-3).float().mean()) < 0.01
