"""Planted copies and defects: what each changes, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from synthgen.data.planted import (
    COPIES,
    DEFECTS,
    PATCH,
    VISIBLE,
    blended,
    blurred,
    constant,
    erased,
    flipped,
    noisy,
    pasted,
    saturated,
    shifted,
)
from synthgen.errors import DataError
from synthgen.randomness import stream

PLANTS = {f"{kind}: {name}": plant for kind, plants in (("copy", COPIES), ("defect", DEFECTS)) for name, plant in plants.items()}
SHAPES = [(40, 1, 8, 8), (12, 3, 10, 14)]


def images(shape: tuple[int, int, int, int] = SHAPES[0], seed: int = 0) -> np.ndarray:
    """Mid-grey with contrast, so that hardly a change is clipped."""
    return np.random.default_rng(seed).integers(40, 216, shape).astype(np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return stream(seed, "planted")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(PLANTS))
def test_shape_and_type_are_kept_and_the_generator_alone_decides(name: str, shape: tuple[int, int, int, int]) -> None:
    given = images(shape)
    before = given.copy()
    found = PLANTS[name](given, rng())
    assert found.dtype == np.uint8
    assert found.shape == shape
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, given)
    assert (given == before).all(), "the original was changed"
    assert (found == PLANTS[name](given, rng())).all()
    assert (found != given).any() or name == "copy: exact"


@pytest.mark.parametrize("name", [name for name in PLANTS if not any(w in name for w in ("exact", "blur", "satur", "const"))])
def test_another_state_of_the_generator_gives_other_images(name: str) -> None:
    found = [PLANTS[name](images(), rng(seed)) for seed in (0, 1)]
    assert (found[0] != found[1]).any() != (name == "copy: flip")


@pytest.mark.parametrize("name", list(PLANTS))
def test_one_image_alone_can_be_planted(name: str) -> None:
    assert PLANTS[name](images()[:1], rng()).shape == (1, 1, 8, 8)


def test_an_exact_copy_is_exact() -> None:
    assert (COPIES["exact"](images(), rng()) == images()).all()


def test_flipped_twice_is_the_image() -> None:
    once = flipped(images(), rng())
    assert (once == images()[..., ::-1]).all()
    assert (flipped(once, rng()) == images()).all()


@pytest.mark.parametrize("px", [1, 2])
def test_shifts_move_by_whole_pixels_in_all_eight_directions(px: int) -> None:
    given = images((200, 1, 8, 8))
    found = shifted(given, rng(), px)
    padded = np.pad(given, ((0, 0), (0, 0), (px, px), (px, px)), mode="edge")
    seen = set()
    for row in range(len(given)):
        moves = [
            (y - px, x - px)
            for y in range(2 * px + 1)
            for x in range(2 * px + 1)
            if (found[row] == padded[row, :, y : y + 8, x : x + 8]).all()
        ]
        assert len(moves) == 1
        seen.add(moves[0])
    assert seen == {(y, x) for y in (-px, 0, px) for x in (-px, 0, px)} - {(0, 0)}


def test_a_shift_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="shifts of 8 px leave nothing of images of 8x9 px"):
        shifted(images((3, 1, 8, 9)), rng(), 8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plant", [erased, pasted])
def test_a_patch_changes_a_square_and_nothing_else(plant, shape: tuple[int, int, int, int]) -> None:  # type: ignore[no-untyped-def]
    given = images(shape)
    found = plant(given, rng())
    side = round(PATCH * min(shape[2:]))
    for original, image in zip(given, found, strict=True):
        ys, xs = np.nonzero((original != image).any(axis=0))
        assert len(ys) > 0
        assert np.ptp(ys) < side
        assert np.ptp(xs) < side
        change = np.square(image.astype(float) - original).sum() / (side * side * shape[1])
        assert np.sqrt(change) / 255 >= VISIBLE


def test_what_is_erased_has_the_colour_of_the_border() -> None:
    given = images((20, 3, 8, 8))
    border = np.array([10, 90, 170], np.uint8)[:, None]
    given[:, :, 0], given[:, :, -1], given[:, :, :, 0], given[:, :, :, -1] = border, border, border, border
    found = erased(given, rng())
    changed = (given != found).any(axis=1)
    assert (found.transpose(0, 2, 3, 1)[changed] == border[:, 0]).all()


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_a_blend_is_the_given_share_of_the_image_and_the_rest_of_another(share: float) -> None:
    given = images()
    found = blended(given, rng(), share).astype(float)
    other = (found - share * given) / (1 - share)
    distance = np.abs(other[:, None] - given[None]).max(axis=(2, 3, 4))
    partner = distance.argmin(axis=1)
    assert distance.min(axis=1).max() <= 0.5 / (1 - share) + 1e-6
    assert (partner != np.arange(len(given))).all()
    assert len(set(partner)) == len(given)
    assert (blended(given, rng(), 1.0) == given).all()


def test_noise_has_the_given_size() -> None:
    given = np.full((50, 1, 16, 16), 128, np.uint8)
    for sd in (0.05, 0.1):
        change = noisy(given, rng(), sd).astype(float) - given
        assert change.std() == pytest.approx(255 * sd, rel=0.03)
        assert abs(change.mean()) < 1


def test_blur_is_the_binomial_filter() -> None:
    dot = np.zeros((1, 1, 5, 5), np.uint8)
    dot[0, 0, 2, 2] = 160
    assert blurred(dot)[0, 0, 1:4, 1:4].tolist() == [[10, 20, 10], [20, 40, 20], [10, 20, 10]]
    flat = np.full((1, 3, 6, 6), 77, np.uint8)
    assert (blurred(flat, times=3) == flat).all()
    spread = [blurred(images(), times=times).astype(float).std() for times in (0, 1, 3)]
    assert spread[0] > 1.5 * spread[1] > 1.5 * spread[2]


def test_constant_and_saturated() -> None:
    given = images(SHAPES[1])
    assert np.ptp(constant(given, rng()), axis=(2, 3)).max() == 0
    assert constant(given, rng())[3, 2, 0, 0] == np.round(given[3, 2].mean())
    levels = np.array([0, 85, 127, 128, 150, 255], np.uint8).reshape(1, 1, 2, 3)
    assert saturated(levels, rng()).ravel().tolist() == [0, 0, 126, 129, 195, 255]


def test_where_nothing_is_visible_the_most_visible_place_is_patched() -> None:
    """Images that hardly differ from their border: the patch lies where of 20 places it changes most, on the brightest pixels."""
    given = np.full((30, 1, 8, 8), 100, np.uint8)
    given[:, :, 5, 5] = 120
    changed = (given != erased(given, rng())).any(axis=(1, 2, 3))
    assert changed.mean() > 0.9
