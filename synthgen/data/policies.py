"""Augmentation policies as functions of a batch and of given uniform numbers: one table, `POLICIES`.

An image's result depends on its own pixels, its own column of numbers and its own strength alone, so the batches of
several networks can be changed in one call. Every choice and amount is computed on the CPU from the numbers: on a GPU
nothing waits for the device, and pixels never leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthgen.config.schema import AugmentConfig
from synthgen.data import transforms
from synthgen.shapes import Float, Int64

Images = Float[Tensor, "b c h w"]
Amount = Float[Tensor, "b 1 1 1"]
Strength = float | Float[np.ndarray, " b"]

LARGEST = {
    "identity": 0.0,
    "shift_x": 10 / 32,
    "shift_y": 10 / 32,
    "rotate": 30.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "scale": 0.3,
    "brightness": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "colour": 0.9,
    "posterize": 4.0,
    "solarize": 1.0,
    "autocontrast": 0.0,
    "equalize": 0.0,
}
"""Operation -> its amount at the highest level, as in AutoAugment on CIFAR-10 (Cubuk et al. 2019, table 6): share of the
frame, degrees, slope, relative change of size (ours: no paper scales), factor on the difference from the plain image
less 1, bits taken away, share of the levels turned over. The last two have no amount."""

GEOMETRY = ("shift_x", "shift_y", "rotate", "shear_x", "shear_y", "scale")
ONE_WAY = ("posterize", "solarize")
"""Operations whose amount has no sign."""

NUM_OPERATIONS = 2
LEVEL = 9 / 30
"""RandAugment's N and M of its ImageNet runs (Cubuk et al. 2020, section 4.4), M as a share of the highest level."""


@dataclass(frozen=True)
class Policy:
    """A way of changing images that leaves their classes as they are.

    Attributes:
        NUMBERS: uniform numbers an image needs.
        apply: (images in [-1, 1], float32 numbers in [0, 1) of shape (NUMBERS, b), strength, limits) -> images in [-1, 1].
            The strength is a factor on the usual amounts, one number or one an image: 1 is the paper's or the limits'.
    """

    NUMBERS: int
    apply: Callable[[Images, np.ndarray, Strength, AugmentConfig], Images]


def standard(images: Images, uniform: Float[np.ndarray, "m b"], strength: Strength, config: AugmentConfig) -> Images:
    """`transforms.augment` with every largest change multiplied by `strength`; a mirror has probability 1/2, or 0 at 0.

    Cost on one CPU thread: 0.1 ms for 64 images of 1x8x8, 1.7 ms for 128 of 3x32x32.
    """
    dial = _dial(strength, len(images))
    return transforms.standard(images, uniform, config, dial, np.where(dial > 0, 0.5, 0.0))


def cutout(images: Images, uniform: Float[np.ndarray, "m b"], strength: Strength, config: AugmentConfig) -> Images:
    """Standard augmentation and a square filled with the image's mean (DeVries & Taylor 2017).

    Its side is `strength` times half the image's, rounded (16 of 32 pixels: the paper's); its centre is any pixel, so
    that part of it may lie outside. The paper fills with the mean of the data, ours is that of each channel of the
    image: a grey square on a black digit would be a stroke. The strength changes the square alone.
    """
    images = transforms.standard(images, uniform[: transforms.NUMBERS], config)
    _, _, h, w = images.shape
    side = np.rint(_dial(strength, len(images)) * min(h, w) / 2)
    y, x = uniform[transforms.NUMBERS :]
    corners = np.stack([np.floor(y * h) - side // 2, np.floor(x * w) - side // 2, side]).astype(np.float32)
    top, left, length = transforms.beside(images, corners)[:, :, None]
    rows, columns = (torch.arange(size, device=images.device) for size in (h, w))
    in_rows, in_columns = (rows >= top) & (rows < top + length), (columns >= left) & (columns < left + length)
    square = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
    return torch.where(square, images.mean(dim=(2, 3), keepdim=True), images)


def randaugment(images: Images, uniform: Float[np.ndarray, "m b"], strength: Strength, config: AugmentConfig) -> Images:
    """Two operations of `allowed`, drawn with replacement, at one level (RandAugment, Cubuk et al. 2020, algorithm 1).

    The level is `strength` times 9 of 30; its sign is drawn for each operation. As in the paper, images are mirrored (if
    `config.flip`) and shifted (`config.shift_px`) first, whatever the strength above 0; at 0 an image stays as it is. All
    that moves pixels is one bilinear resampling; then intensities change, in the order drawn.

    Cost on one CPU thread: 0.7 ms for 64 images of 1x8x8, 4 ms for 128 of 3x32x32.
    """
    base, which, sign = uniform[:3], uniform[3 : 3 + NUM_OPERATIONS], uniform[3 + NUM_OPERATIONS :]
    level = np.broadcast_to(LEVEL * _dial(strength, len(images)), which.shape)
    return _changed(images, base, which, sign, level, config)


def trivialaugment(images: Images, uniform: Float[np.ndarray, "m b"], strength: Strength, config: AugmentConfig) -> Images:
    """One operation of `allowed` at a uniform level (TrivialAugment, Müller & Hutter 2021, algorithm 1, "RA" ranges).

    The level is `strength` times a number between 0 and the highest; the rest as in `randaugment`. The ranges of the
    paper's "wide" variant turn an image by up to 135 degrees: a 6 would be a 9.

    Cost on one CPU thread: 0.5 ms for 64 images of 1x8x8, 3 ms for 128 of 3x32x32.
    """
    base, which, sign = uniform[:3], uniform[3:4], uniform[4:5]
    return _changed(images, base, which, sign, uniform[5:6] * _dial(strength, len(images)), config)


POLICIES: dict[str, Policy] = {
    "standard": Policy(transforms.NUMBERS, standard),
    "randaugment": Policy(3 + 2 * NUM_OPERATIONS, randaugment),
    "trivialaugment": Policy(6, trivialaugment),
    "cutout": Policy(transforms.NUMBERS + 2, cutout),
}


def allowed(config: AugmentConfig, channels: int) -> tuple[str, ...]:
    """The operations that leave the class unchanged.

    What the limits rule out (a largest change of 0) rules out what is like it: `rotate_deg` shears, `contrast` everything
    that changes intensities. Saturation needs three channels.
    """
    limit = {"shift": config.shift_px, "rotate": config.rotate_deg, "shear": config.rotate_deg, "scale": config.scale}
    kinds = {name: name.split("_")[0] for name in LARGEST}
    return tuple(
        name
        for name in LARGEST
        if name == "identity" or (limit.get(kinds[name], config.contrast) > 0 and (name != "colour" or channels == 3))
    )


def _dial(strength: Strength, b: int) -> Float[np.ndarray, " b"]:
    return np.broadcast_to(np.asarray(strength, np.float32), b)


def _changed(
    images: Images,
    base: Float[np.ndarray, "3 b"],
    which: Float[np.ndarray, "n b"],
    sign: Float[np.ndarray, "n b"],
    level: Float[np.ndarray, "n b"],
    config: AugmentConfig,
) -> Images:
    """Mirrored, shifted, and changed by n operations at shares `level` of their largest amounts; as they are at level 0."""
    names = allowed(config, images.shape[1])
    chosen = (which * len(names)).astype(np.int64)
    amount = np.array([LARGEST[name] for name in names], np.float32)[chosen] * level
    either_way = np.array([name not in ONE_WAY for name in names])[chosen]
    amount = np.where(either_way & (sign < 0.5), -amount, amount)
    active = level.max(axis=0) > 0
    images = _moved(images, base, names, chosen, amount, active, config)
    for operation, share in zip(np.where(active, chosen, 0), amount, strict=True):
        images = _recoloured(images, names, operation, share)
    return images


# Geometry: one resampling


def _moved(
    images: Images,
    base: Float[np.ndarray, "3 b"],
    names: Sequence[str],
    chosen: Int64[np.ndarray, "n b"],
    amount: Float[np.ndarray, "n b"],
    active: np.ndarray,
    config: AugmentConfig,
) -> Images:
    """Mirror, shift and the geometry among the chosen operations; an image that none of them moves keeps its bytes."""
    shape = images.shape
    mirror = np.where(active & config.flip & (base[0] < 0.5), -1.0, 1.0)
    x_px, y_px = np.where(active, config.shift_px * (2 * base[1:] - 1), 0.0)
    thetas = [transforms.affine(shape, mirror, x_px, y_px)]
    for operation, share in zip(chosen, amount, strict=True):
        by = {name: np.where(operation == names.index(name), share, 0.0) if name in names else 0.0 for name in GEOMETRY}
        angle, zoom = np.deg2rad(by["rotate"]), np.maximum(1 + by["scale"], transforms.SMALLEST_ZOOM)
        x_px, y_px = shape[3] * by["shift_x"], shape[2] * by["shift_y"]
        thetas.append(transforms.affine(shape, 1.0, x_px, y_px, angle, zoom, by["shear_x"], by["shear_y"]))
    theta = thetas[0]
    for following in thetas[1:]:
        last = np.broadcast_to(np.array([0, 0, 1], np.float32), (len(images), 1, 3))
        theta = theta @ np.concatenate([following, last], axis=1)
    moves = (theta != np.eye(2, 3)).any(axis=(1, 2))
    if not moves.any():
        return images
    moved = transforms.resample(images, theta)
    if moves.all():
        return moved
    return torch.where(transforms.beside(images, moves.astype(np.float32))[:, None, None, None] > 0, moved, images)


# Intensities: each operation on the images that drew it


def _recoloured(images: Images, names: Sequence[str], chosen: Int64[np.ndarray, " b"], amount: Float[np.ndarray, " b"]) -> Images:
    """One operation an image. Which images drew which is known on the CPU: no waiting for it."""
    order = np.argsort(chosen, kind="stable")
    ends = np.searchsorted(chosen[order], np.arange(len(names) + 1))
    drawn = [(name, ends[i], ends[i + 1]) for i, name in enumerate(names) if name in INTENSITY and ends[i] < ends[i + 1]]
    if not drawn:
        return images
    rows = torch.from_numpy(order).to(images.device, non_blocking=True)
    shares = transforms.beside(images, amount[order].astype(np.float32))[:, None, None, None]
    images = images.clone()
    for name, start, end in drawn:
        own = rows[start:end]
        images.index_copy_(0, own, INTENSITY[name](images.index_select(0, own), shares[start:end]))
    return images


def brightness(images: Images, amount: Amount) -> Images:
    """1 + amount times the distance from black."""
    return _blended(torch.full_like(images, -1), images, amount)


def contrast(images: Images, amount: Amount) -> Images:
    """1 + amount times the distance from the image's mean grey."""
    return _blended(_grey(images).mean(dim=(1, 2, 3), keepdim=True), images, amount)


def colour(images: Images, amount: Amount) -> Images:
    """1 + amount times the distance from the grey image: saturation."""
    return _blended(_grey(images), images, amount)


def sharpness(images: Images, amount: Amount) -> Images:
    """1 + amount times the distance from the smoothed image (3x3, weights 1 and 5 in the middle, as PIL); edges stay."""
    smooth = images.clone()
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth[:, :, 1:-1, 1:-1] = (box + 4 * images[:, :, 1:-1, 1:-1]) / 13
    return _blended(smooth, images, amount)


def posterize(images: Images, amount: Amount) -> Images:
    """Levels of 0-255 with the last `amount` bits (rounded, at most 7) set to 0."""
    step = torch.exp2(amount.round().clamp(0, 7))
    return torch.floor(_levels(images) / step) * step / 127.5 - 1


def solarize(images: Images, amount: Amount) -> Images:
    """Every level from the highest share `amount` of the levels on turned over: v -> 255 - v."""
    return torch.where(images >= 1 - 2 * amount, -images, images)


def autocontrast(images: Images, amount: Amount) -> Images:
    """Each channel stretched to [-1, 1]; a constant one stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, ((images - low) / spread * 2 - 1).clamp(-1, 1), images)


def equalize(images: Images, amount: Amount) -> Images:
    """Each channel's levels spread by their ranks: v -> share of the pixels below v, of those below the highest level.

    PIL's formula without its rounding to whole steps of n/255 pixels, which leaves images of fewer than 256 unchanged.
    """
    levels = _levels(images).flatten(2).to(torch.int64)
    counts = torch.zeros((*levels.shape[:2], 256), dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    below = (counts.cumsum(2) - counts).gather(2, levels).to(images.dtype)
    most = below.amax(dim=2, keepdim=True)
    spread = torch.where(most > 0, below / most.clamp(min=1) * 2 - 1, images.flatten(2))
    return spread.reshape(images.shape)


INTENSITY: dict[str, Callable[[Images, Amount], Images]] = {
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "colour": colour,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}


def _blended(base: Tensor, images: Images, amount: Amount) -> Images:
    # not torch.lerp: its last bit depends on where in a batch an image stands
    return (base + (1 + amount).clamp(min=0) * (images - base)).clamp(-1, 1)


def _grey(images: Images) -> Float[Tensor, "b 1 h w"]:
    """Luma of ITU-R BT.601 for three channels, as PIL; else their mean."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _levels(images: Images) -> Images:
    """0-255, whole numbers."""
    return ((images + 1) * 127.5).round().clamp(0, 255)
