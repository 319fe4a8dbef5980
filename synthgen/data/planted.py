"""Planted copies and defects: real images changed in a known way, so that a gate's recall on them can be measured.

Every function takes images, "n c h w" uint8, and returns as many; all randomness is the given generator's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from synthgen.errors import DataError
from synthgen.shapes import UInt8

Images = UInt8[np.ndarray, "n c h w"]
Plant = Callable[[Images, np.random.Generator], Images]

PATCH = 3 / 8
"""Side of an erased or pasted patch as a share of the image's: 3 of 8 px, 12 of 32 px."""

VISIBLE = 0.1
"""Least root mean square change within a patch, in units of the full range: less isn't a defect that anyone could see."""


def noisy(images: Images, rng: np.random.Generator, sd: float) -> Images:
    """Gaussian noise of standard deviation `sd`, in units of the full range."""
    return _pixels(images + rng.standard_normal(images.shape, dtype=np.float32) * (255 * sd))


def shifted(images: Images, rng: np.random.Generator, px: int) -> Images:
    """Each image shifted by `px` pixels along x, y or both, either way; what comes in repeats the edge."""
    height, width = images.shape[2:]
    if px >= min(height, width):
        raise DataError(f"shifts of {px} px leave nothing of images of {height}x{width} px")
    padded = np.pad(images, ((0, 0), (0, 0), (px, px), (px, px)), mode="edge")
    moves = [(y, x) for y in (0, px, 2 * px) for x in (0, px, 2 * px) if (y, x) != (px, px)]
    chosen = rng.integers(len(moves), size=len(images))
    out = np.empty_like(images)
    for move, (y, x) in enumerate(moves):
        rows = chosen == move
        out[rows] = padded[rows, :, y : y + height, x : x + width]
    return out


def flipped(images: Images, rng: np.random.Generator) -> Images:
    """Mirrored left-right."""
    return np.ascontiguousarray(images[..., ::-1])


def blended(images: Images, rng: np.random.Generator, share: float) -> Images:
    """`share` of each image and 1 - `share` of another of the set (its own, in a set of one)."""
    partner = np.roll(images, int(rng.integers(1, max(2, len(images)))), axis=0).astype(np.float32)
    return _pixels(share * images + (1 - share) * partner)


def blurred(images: Images, rng: np.random.Generator | None = None, times: int = 1) -> Images:
    """Under the 3x3 binomial filter (1 2 1)/4 in both directions, edges repeated, `times` times."""
    x: np.ndarray = images.astype(np.float32)
    for _ in range(times):
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
        x = (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4
    return _pixels(x)


def erased(images: Images, rng: np.random.Generator) -> Images:
    """A square patch filled with the colour of the image's border (its median), where that is visible."""
    ring = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]], axis=2)
    fill = np.median(ring, axis=2).astype(np.uint8)[:, :, None, None]
    return _patched(images, np.broadcast_to(fill, images.shape), rng)


def pasted(images: Images, rng: np.random.Generator) -> Images:
    """A square patch taken from the same place of another image of the set, where that is visible."""
    return _patched(images, np.roll(images, int(rng.integers(1, max(2, len(images)))), axis=0), rng)


def saturated(images: Images, rng: np.random.Generator) -> Images:
    """Contrast tripled about mid-grey: most pixels end at 0 or 255."""
    return _pixels((images.astype(np.float32) - 127.5) * 3 + 127.5)


def constant(images: Images, rng: np.random.Generator) -> Images:
    """Each image replaced by its mean colour."""
    return _pixels(np.broadcast_to(images.mean(axis=(2, 3), keepdims=True, dtype=np.float32), images.shape))


def static(images: Images, rng: np.random.Generator) -> Images:
    """Uniform noise in place of each image."""
    return rng.integers(0, 256, images.shape, dtype=np.uint8)


COPIES: dict[str, Plant] = {
    "exact": lambda images, rng: images.copy(),
    "noise .05": lambda images, rng: noisy(images, rng, 0.05),
    "noise .1": lambda images, rng: noisy(images, rng, 0.1),
    "shift 1 px": lambda images, rng: shifted(images, rng, 1),
    "shift 2 px": lambda images, rng: shifted(images, rng, 2),
    "flip": flipped,
    "flip, shift 1 px, noise .05": lambda images, rng: noisy(shifted(flipped(images, rng), rng, 1), rng, 0.05),
    "blend 75/25": lambda images, rng: blended(images, rng, 0.75),
}
"""Name -> what a copier might do to a training image."""

DEFECTS: dict[str, Plant] = {
    "blur 1": lambda images, rng: blurred(images, times=1),
    "blur 3": lambda images, rng: blurred(images, times=3),
    "noise .05": lambda images, rng: noisy(images, rng, 0.05),
    "noise .15": lambda images, rng: noisy(images, rng, 0.15),
    "erased patch": erased,
    "pasted patch": pasted,
    "morph 50/50": lambda images, rng: blended(images, rng, 0.5),
    "saturated": saturated,
    "constant": constant,
    "static": static,
}
"""Name -> what a poor generator might do to an image."""


def _patched(images: Images, filling: Images, rng: np.random.Generator) -> Images:
    """A square of `filling` in each image, at the first of 20 random places where it is visible, else where it is most so."""
    height, width = images.shape[2:]
    side = max(2, round(PATCH * min(height, width)))
    ys, xs = rng.integers(0, height - side + 1, (len(images), 20)), rng.integers(0, width - side + 1, (len(images), 20))
    out = images.copy()
    for row, (image, patch) in enumerate(zip(images, filling, strict=True)):
        best, most = (ys[row, 0], xs[row, 0]), -1.0
        for y, x in zip(ys[row], xs[row], strict=True):
            square = (slice(None), slice(y, y + side), slice(x, x + side))
            change = float(np.sqrt(np.square(image[square].astype(np.float32) - patch[square]).mean())) / 255
            if change > most:
                best, most = (y, x), change
            if change >= VISIBLE:
                break
        y, x = best
        out[row, :, y : y + side, x : x + side] = patch[:, y : y + side, x : x + side]
    return out


def _pixels(x: np.ndarray) -> Images:
    return np.clip(np.round(x), 0, 255).astype(np.uint8)
