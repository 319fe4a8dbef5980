"""Planted copies must be found at a threshold that real images pass, and the search must not depend on how it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import jaxtyping
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from synthgen.config.schema import DataConfig
from synthgen.data.planted import COPIES, noisy, shifted
from synthgen.data.sources import load
from synthgen.errors import DataError
from synthgen.metrics import copies
from synthgen.metrics.copies import (
    copy_ratio,
    duplicate_groups,
    expected_distance,
    expected_nearest,
    feature_copy_ratio,
    fit_whitening,
    nearest_other,
)

DIGITS = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:, None]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' shape checks, as a user runs it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """CIFAR-10's test images, if they are there."""
    try:
        return load(DataConfig(source="parquet", path="cifar10/test.parquet")).batch.images
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")


def scenery(rng: np.random.Generator, n: int, shape: tuple[int, int, int] = (3, 32, 32)) -> np.ndarray:
    """Random images with the spectrum of natural ones, amplitude 1/f."""
    c, h, w = shape
    frequency = np.hypot(np.fft.fftfreq(2 * h)[:, None], np.fft.rfftfreq(2 * w)[None, :])
    frequency[0, 0] = 1 / (2 * max(h, w))
    x = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(n, c, 2 * h, 2 * w))) / frequency, s=(2 * h, 2 * w))[..., :h, :w]
    return np.clip(np.round(127 + 50 * x / x.std()), 0, 255).astype(np.uint8)


def split(images: np.ndarray, seed: int, *sizes: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(images))
    return [images[rows] for rows in np.split(order, np.cumsum(sizes))[: len(sizes)]]


def found(
    train: np.ndarray, held_out: np.ndarray, unseen: np.ndarray, planted: np.ndarray, search_px: int, alpha: float
) -> tuple[dict[str, float], float]:
    """Share of each kind of copy of `planted` below the alpha quantile of held-out images, and share of unseen ones."""
    size = max(1, min(len(train), len(held_out) // 2))

    def ratio(images: np.ndarray, exclude_self: bool = False) -> np.ndarray:
        return copy_ratio(images, train, held_out, size, search_px, True, exclude_self).ratio.numpy()

    null = np.sort(ratio(held_out, exclude_self=True))
    threshold = null[max(1, int((len(null) + 1) * alpha)) - 1]
    rng = np.random.default_rng(1)
    shares = {name: float((ratio(plant(planted, rng)) < threshold).mean()) for name, plant in COPIES.items()}
    return shares, float((ratio(unseen) < threshold).mean())


# Known answers


def test_copies_of_digits_are_found() -> None:
    runs = [
        found(train, held_out, rest, train, 1, 0.0075)
        for train, held_out, rest in (split(DIGITS, s, 50, 300, 700) for s in range(3))
    ]
    shares = {name: np.mean([run[0][name] for run in runs]) for name in COPIES}
    for name in ("exact", "flip", "noise .05", "shift 1 px", "flip, shift 1 px, noise .05"):
        assert shares[name] >= 0.97, name
    assert shares["noise .1"] >= 0.8
    assert shares["blend 75/25"] >= 0.9
    assert shares["shift 2 px"] <= 0.2  # beyond the search: this table can tell
    assert np.mean([run[1] for run in runs]) <= 0.02


def test_copies_of_photographs_are_found(photographs: np.ndarray) -> None:
    train, held_out, unseen = split(photographs, 0, 400, 500, 500)
    shares, false_alarms = found(train, held_out, unseen, train[:30], 2, 0.01)
    assert min(shares.values()) >= 0.96, shares
    assert false_alarms <= 0.03


def test_real_images_score_about_one() -> None:
    train, held_out, unseen = split(DIGITS, 0, 300, 600, 300)
    ratio = copy_ratio(unseen, train, held_out, 300, 1, True).ratio
    assert 0.9 < float(ratio.median()) < 1.1


# Poses


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 32, 32), (1, 64, 64)])
def test_copies_are_found_however_they_are_moved(rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    train, held_out = scenery(rng, 60, shape), scenery(rng, 80, shape)
    moved = np.concatenate([shifted(train[:10], rng, 1), train[10:20, ..., ::-1], shifted(train[20:30, ..., ::-1], rng, 1)])
    match = copy_ratio(np.concatenate([train[:5], moved]), train, held_out, 40, 1, True)
    assert match.nearest.tolist() == [*range(5), *range(30)]
    assert (match.ratio[:5] == 0).all()
    assert (match.distance[:5] == 0).all()
    assert match.ratio[5:].max() < 0.5
    unsearched = copy_ratio(moved, train, held_out, 40, 0, False)
    assert unsearched.ratio.min() > match.ratio[5:].max()


def test_a_mirror_is_only_looked_into_when_asked(rng: np.random.Generator) -> None:
    train, held_out = scenery(rng, 40), scenery(rng, 40)
    mirrored = train[..., ::-1].copy()
    assert (copy_ratio(mirrored, train, held_out, 20, 0, True).ratio == 0).all()
    assert copy_ratio(mirrored, train, held_out, 20, 0, False).ratio.min() > 0.3


def test_distances_are_those_of_the_definition(rng: np.random.Generator) -> None:
    """Against loops over images and poses, without a shortlist's help."""
    train, held_out, images = scenery(rng, 9, (3, 12, 12)), scenery(rng, 9, (3, 12, 12)), scenery(rng, 5, (3, 12, 12))
    images[0] = noisy(shifted(train[3:4], rng, 1), rng, 0.1)[0]
    whitening = fit_whitening(train, held_out)
    x, y = whitening(images).double().numpy(), whitening(train).double().numpy()
    expected = np.empty((5, 9))
    for i in range(5):
        for j in range(9):
            cosines = []
            for pose in (x[i], x[i][..., ::-1]):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        a = pose[:, max(0, dy) : 12 + min(0, dy), max(0, dx) : 12 + min(0, dx)].ravel()
                        b = y[j][:, max(0, -dy) : 12 + min(0, -dy), max(0, -dx) : 12 + min(0, -dx)].ravel()
                        cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
            expected[i, j] = np.tan(np.arccos(max(cosines)))
    match = copy_ratio(images, train, held_out, 4, 1, True)
    assert match.distance.numpy() == pytest.approx(expected.min(axis=1), rel=1e-3)
    assert match.nearest.tolist() == expected.argmin(axis=1).tolist()


def test_noise_cancels_out(rng: np.random.Generator) -> None:
    """Noise turns an image away from its source and from all others alike."""
    train, held_out = scenery(rng, 100), scenery(rng, 200)
    slight, strong = (copy_ratio(noisy(train[:50], rng, sd), train, held_out, 100, 0, False) for sd in (0.05, 0.3))
    assert strong.distance.median() > 3 * slight.distance.median()
    assert strong.ratio.max() < 0.7


def test_constant_images_are_copies_of_nothing_but_each_other(rng: np.random.Generator) -> None:
    train, held_out = scenery(rng, 30), scenery(rng, 40)
    train[7] = round(float(held_out.mean()))
    match = copy_ratio(np.concatenate([train[7:8], scenery(rng, 20)]), train, held_out, 20, 1, True)
    assert float(match.ratio[0]) == 0
    assert match.ratio[1:].min() > 0.5
    assert torch.isfinite(match.distance).all()


# The same answer however it is asked


@pytest.fixture
def digits_in_roles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    train, held_out, images = split(DIGITS, 3, 150, 200, 90)
    images[:20] = noisy(train[:20], np.random.default_rng(0), 0.1)
    return train, held_out, images


def test_chunks_do_not_matter(digits_in_roles: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out, images = digits_in_roles
    before, before_self = (
        copy_ratio(images, train, held_out, 100, 1, True),
        copy_ratio(held_out, train, held_out, 100, 1, True, True),
    )
    monkeypatch.setattr(copies, "CHUNK", 37)
    monkeypatch.setattr(copies, "TILE", 20_000)
    after, after_self = (
        copy_ratio(images, train, held_out, 100, 1, True),
        copy_ratio(held_out, train, held_out, 100, 1, True, True),
    )
    for one, other in ((before, after), (before_self, after_self)):
        assert other.ratio.numpy() == pytest.approx(one.ratio.numpy(), rel=1e-3)
        assert torch.equal(other.nearest, one.nearest)


def test_order_does_not_matter(digits_in_roles: tuple, rng: np.random.Generator) -> None:
    train, held_out, images = digits_in_roles
    a, b, c = (rng.permutation(len(x)) for x in (train, held_out, images))
    before, after = copy_ratio(images, train, held_out, 100, 1, True), copy_ratio(images[c], train[a], held_out[b], 100, 1, True)
    assert after.ratio.numpy() == pytest.approx(before.ratio.numpy()[c], rel=1e-3)
    assert a[after.nearest.numpy()].tolist() == before.nearest[torch.from_numpy(c)].tolist()


def test_the_same_bytes_twice(digits_in_roles: tuple) -> None:
    train, held_out, images = digits_in_roles
    one, other = (copy_ratio(images, train, held_out, 100, 1, True) for _ in range(2))
    assert torch.equal(one.ratio, other.ratio)


def test_floats_are_as_good_as_bytes(digits_in_roles: tuple) -> None:
    train, held_out, images = digits_in_roles
    one = copy_ratio(images, train, held_out, 100, 1, True)
    other = copy_ratio(images.astype(np.float32) / 255, torch.from_numpy(train / 255), held_out, 100, 1, True)
    assert other.ratio.numpy() == pytest.approx(one.ratio.numpy(), rel=1e-3)


def test_the_shortlist_loses_nothing(digits_in_roles: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out, images = digits_in_roles
    short = copy_ratio(images, train, held_out, 100, 1, True)
    monkeypatch.setattr(copies, "SHORTLIST", 10_000)
    long = copy_ratio(images, train, held_out, 100, 1, True)
    assert (short.nearest == long.nearest).double().mean() > 0.95
    assert torch.equal(short.nearest[:20], long.nearest[:20])
    assert short.ratio.numpy() == pytest.approx(long.ratio.numpy(), rel=0.15)


def test_a_held_out_image_is_left_out_of_its_own_comparison(digits_in_roles: tuple) -> None:
    train, held_out, _ = digits_in_roles
    left_out = copy_ratio(held_out, train, held_out, 100, 1, True, exclude_self=True).ratio
    for row in (0, 57, 199):
        alone = copy_ratio(held_out[row : row + 1], train, np.delete(held_out, row, axis=0), 100, 1, True).ratio
        assert float(left_out[row]) == pytest.approx(float(alone[0]), rel=0.05)  # the filter saw one image more
    assert 0.8 < float(left_out.median()) < 1.2


# Parts


def test_whitening_whitens(rng: np.random.Generator) -> None:
    """Held-out power S becomes S / (S + NOISE^2): below 1, near it where images vary; colours come out uncorrelated."""
    images = scenery(rng, 2000, (3, 16, 16))
    images[:, 1] = images[:, 0] // 2 + images[:, 1] // 2
    white = fit_whitening(images[::2], images[1::2])(images)
    spectrum = copies._cosines(16) @ white @ copies._cosines(16).T
    power = spectrum.square().mean(dim=(0, 1))
    assert float(power[1:3, 1:3].min()) > 0.7
    assert float(power[1:, 1:].max()) < 1.2
    correlation = torch.corrcoef(spectrum[:, :, 2, 3].T)
    assert (correlation - torch.eye(3)).abs().max() < 0.2


def test_whitening_commutes_with_mirrors_and_inner_shifts(rng: np.random.Generator) -> None:
    images = scenery(rng, 300)
    whitening = fit_whitening(images[::2], images[1::2])
    white = whitening(images)
    assert torch.allclose(whitening(images[..., ::-1].copy()), white.flip(-1), atol=1e-4)
    inner = whitening(np.roll(images, (2, 1), axis=(2, 3)))[..., 8:24, 8:24], white[..., 6:22, 7:23]
    assert float((inner[0] - inner[1]).square().mean()) < 0.01 * float(inner[1].square().mean())


def test_expected_nearest_is_the_mean_over_all_draws(rng: np.random.Generator) -> None:
    distances = torch.from_numpy(rng.random((3, 8)))
    for size in (1, 3, 8):
        draws = [distances[:, list(rows)].amin(dim=1) for rows in combinations(range(8), size)]
        assert torch.allclose(expected_nearest(distances, size), torch.stack(draws).mean(dim=0))


def test_a_shortened_draw_misses_next_to_nothing() -> None:
    for m, size in ((300, 50), (10_000, 5_000), (10_000, 50)):
        short, long = copies._draw_weights(m, size), copies._draw_weights(m, size, tail=0.0)
        assert float(short.sum()) == pytest.approx(1, abs=1e-9)
        assert torch.allclose(short[:-1], long[: len(short) - 1])
        assert float(short[-1] - long[len(short) - 1]) <= copies.TAIL


# Features


def test_copies_are_found_in_features(rng: np.random.Generator) -> None:
    scale = np.geomspace(10, 0.1, 20)
    train, held_out, unseen = (rng.normal(size=(n, 20)) * scale + 5 for n in (100, 300, 300))
    planted = train + 0.2 * scale * rng.normal(size=train.shape)
    null = np.sort(feature_copy_ratio(held_out, train, held_out, 100, exclude_self=True).ratio.numpy())
    match = feature_copy_ratio(planted, train, held_out, 100)
    assert (match.ratio.numpy() < null[2]).mean() == 1
    assert match.nearest.tolist() == list(range(100))
    assert (feature_copy_ratio(unseen, train, held_out, 100).ratio.numpy() < null[2]).mean() < 0.04
    assert (feature_copy_ratio(train, train, held_out, 100).ratio == 0).all()
    rescaled = feature_copy_ratio(3 * planted - 7, 3 * train - 7, 3 * held_out - 7, 100)
    assert rescaled.ratio.numpy() == pytest.approx(match.ratio.numpy(), rel=1e-6)


def test_more_features_than_images_do_not_alarm(rng: np.random.Generator) -> None:
    """Real images lie in the span of their own covariance and candidates don't, but on both sides of the ratio alike."""
    train, held_out, unseen = (rng.normal(size=(n, 400)) for n in (60, 120, 300))
    null = np.sort(feature_copy_ratio(held_out, train, held_out, 60, exclude_self=True).ratio.numpy())
    assert (feature_copy_ratio(unseen, train, held_out, 60).ratio.numpy() < null[5]).mean() < 0.12


# Duplicates inside a set


def test_duplicates_stand_behind_the_best_of_their_group(rng: np.random.Generator) -> None:
    images = rng.integers(0, 255, (600, 1, 8, 8)).astype(np.uint8)
    images[100], images[550] = images[3], images[3]
    images[7] = np.clip(images[3].astype(int) + 2, 0, 255)
    reach = np.full(600, 0.02)
    leaders = duplicate_groups(images, reach)
    assert leaders[[100, 550, 7]].tolist() == [3, 3, 3]
    assert (leaders == torch.arange(600)).sum() == 597
    order = np.r_[550, np.delete(np.arange(600), 550)]
    assert duplicate_groups(images, reach, order)[[3, 7, 100, 550]].tolist() == [550] * 4
    equal = np.repeat(images[:3], 4, axis=0)
    assert duplicate_groups(equal, np.zeros(12)).tolist() == [0] * 4 + [4] * 4 + [8] * 4


def test_distances_inside_and_between_sets(rng: np.random.Generator) -> None:
    images, others = scenery(rng, 30), scenery(rng, 40)
    images[4] = images[9]
    flat, flat_others = (F.avg_pool2d(copies.blur(x), 2).flatten(1).double() for x in (images, others))
    apart = torch.cdist(flat, flat).fill_diagonal_(torch.inf) / flat.shape[1] ** 0.5
    nearest = nearest_other(images)
    assert torch.allclose(nearest, apart.amin(dim=1), atol=1e-4)
    assert nearest[[4, 9]].tolist() == [0, 0]
    between = torch.cdist(flat, flat_others) / flat.shape[1] ** 0.5
    assert torch.allclose(expected_distance(images, others, 10), expected_nearest(between, 10), atol=1e-4)
    assert nearest_other(images[:1]).tolist() == [torch.inf]


# Refusals


def test_what_cannot_be_compared_is_refused(unchecked: None, rng: np.random.Generator) -> None:
    images = scenery(rng, 5, (1, 8, 8))
    with pytest.raises(DataError, match=r"\(1, 8, 8\).*\(1, 8, 9\)"):
        copy_ratio(images, scenery(rng, 5, (1, 8, 9)), images, 1, 1, True)
    with pytest.raises(DataError, match="6 of 5 held-out images can't be drawn"):
        copy_ratio(images, images, images, 6, 1, True)
    with pytest.raises(DataError, match="5 of 4 other held-out images can't be drawn"):
        copy_ratio(images, images, images, 5, 1, True, exclude_self=True)
    with pytest.raises(DataError, match="3 images and 5 held-out ones"):
        copy_ratio(images[:3], images, images, 2, 1, True, exclude_self=True)
    with pytest.raises(DataError, match="no training images"):
        copy_ratio(images, images[:0], images, 2, 1, True)
    with pytest.raises(DataError, match="shifts of 8 px leave nothing of images of 8x8 px"):
        copy_ratio(images, images, images, 2, 8, True)
    with pytest.raises(DataError, match="features of 3, 4 and 3 dimensions"):
        feature_copy_ratio(np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 3)), 1)
    with pytest.raises(DataError, match="train features: 1 of 2 rows"):
        feature_copy_ratio(np.ones((2, 1)), np.array([[1.0], [np.nan]]), np.ones((2, 1)), 1)


@pytest.mark.gpu
def test_a_gpu_says_the_same(digits_in_roles: tuple) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train, held_out, images = digits_in_roles
    cpu, gpu = (copy_ratio(images, train, held_out, 100, 1, True, device=device) for device in ("cpu", "cuda"))
    assert gpu.ratio.numpy() == pytest.approx(cpu.ratio.numpy(), rel=1e-2)
    assert (gpu.nearest == cpu.nearest).double().mean() > 0.98
