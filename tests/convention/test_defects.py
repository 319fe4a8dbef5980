"""The defect detector on digits: what it finds of planted defects and of kinds it never saw, and what it drops of real images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from synthgen import randomness
from synthgen.config.schema import AugmentConfig, ClassifierConfig
from synthgen.data import planted
from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.gate.signals import defect_scores
from synthgen.models.defects import KINDS, DefectDetector, margins, plant, varied
from synthgen.training import fit
from synthgen.types import Batch, DatasetSpec, Silent

IMAGES = np.round(load_digits().images * 255 / 16).astype(np.uint8)[:, None]
ORDER = np.random.default_rng(0).permutation(len(IMAGES))
TRAIN, NULL, UNSEEN = (IMAGES[ORDER[a:b]] for a, b in ((0, 200), (200, 400), (400, 1200)))
SPEC = DatasetSpec("digits", (1, 8, 8), ("any",), False, "0" * 64)
AUGMENT = AugmentConfig(shift_px=1, rotate_deg=10, scale=0.1)


def trained(steps: int, seed: int = 0) -> nn.Module:
    torch.set_num_threads(1)
    detector = DefectDetector(ClassifierConfig(width=16, steps=steps, batch_size=32), SPEC, seed, AUGMENT)
    batch = Batch(TRAIN, np.zeros(len(TRAIN), np.int64), tuple(f"real-{i}" for i in range(len(TRAIN))))
    fit(detector, [(batch, 32)], steps=steps, seed=seed, task="defects", progress=Silent())
    return detector.network


Score = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained(250)


@pytest.fixture(scope="module")
def score(network: nn.Module) -> Score:
    null = margins(network, NULL)
    return lambda images: defect_scores(margins(network, images), null)


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    return float((bad[:, None] > good[None, :]).mean())


@pytest.mark.parametrize(
    ("defect", "least"),
    [
        ("blur 1", 0.97),
        ("blur 3", 0.99),
        ("noise .15", 0.97),
        ("erased patch", 0.8),
        ("pasted patch", 0.7),
        ("morph 50/50", 0.88),
        ("saturated", 0.95),
        ("constant", 0.99),
        ("static", 0.99),
    ],
)
def test_planted_defects_score_above_unseen_real_images(score: Score, defect: str, least: float):
    bad = planted.DEFECTS[defect](UNSEEN, np.random.default_rng(1))
    assert auroc(score(bad), score(UNSEEN)) > least


def test_a_kind_that_was_never_planted_is_found_too(score: Score):
    checkers = np.where(np.indices((8, 8)).sum(axis=0) % 2, 20, -20)
    bad = np.clip(UNSEEN.astype(int) + checkers, 0, 255).astype(np.uint8)
    assert auroc(score(bad), score(UNSEEN)) > 0.9


def test_unseen_real_images_are_dropped_about_as_often_as_calibrated(network: nn.Module):
    """The mean over random halves: one threshold from 200 images drops 1 to 12% at 5%."""
    real, rng, dropped = margins(network, np.concatenate([NULL, UNSEEN])), np.random.default_rng(0), []
    for _ in range(50):
        order = rng.permutation(len(real))
        null, new = real[order[:200]], real[order[200:]]
        dropped.append((defect_scores(new, null) > np.sort(defect_scores(null, null))[-10]).mean())
    assert 0.03 < np.mean(dropped) < 0.07


def test_invisible_noise_is_no_defect(score: Score):
    threshold = np.sort(score(UNSEEN))[-8]  # 1%
    noisy = planted.noisy(UNSEEN, np.random.default_rng(1), 0.005)
    assert (score(noisy) > threshold).mean() < 0.02


def test_same_seed_same_bytes_another_seed_others():
    one, two, other = (margins(trained(5, seed), NULL[:20]) for seed in (0, 0, 1))
    assert one.shape == (20, len(KINDS))
    assert one.dtype == np.float32
    assert one.tobytes() == two.tobytes() != other.tobytes()


def test_an_image_keeps_its_score_whatever_stands_beside_it(score: Score):
    assert np.allclose(score(UNSEEN[:50])[:7], score(UNSEEN[:7]), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20)])
def test_every_kind_is_planted_within_its_range(shape: tuple[int, int, int]):
    rng = np.random.default_rng(0)
    images = to_float(rng.integers(0, 256, (400, *shape), dtype=np.uint8))
    bad, kind, change = plant(images, rng)
    assert set(kind.tolist()) == set(range(len(KINDS)))
    assert bad.min() >= -1
    assert bad.max() <= 1
    assert (change > 0).float().mean() > 0.95
    changed = (bad != images).any(dim=1).flatten(1).float().mean(dim=1)
    erased, blend = (changed[kind == list(KINDS).index(name)] for name in ("erased", "blend"))
    assert erased.max() < 0.95  # a patch
    assert blend.min() > 0.95  # the whole image


def test_sound_images_move_by_whole_pixels_or_are_resampled():
    images = to_float(TRAIN)
    sound = varied(images, randomness.stream(0, "varied"), AUGMENT)
    levels = (sound + 1) * 127.5
    on_grid = (levels[..., None] - torch.from_numpy(np.unique(TRAIN)).float()).abs().amin(dim=-1).flatten(1).amax(dim=1) < 0.01
    assert 0.3 < on_grid.float().mean() < 0.7


def test_too_few_real_images_to_scale_by_are_refused():
    with pytest.raises(DataError, match="19 real images are too few"):
        defect_scores(np.zeros((3, len(KINDS)), np.float32), np.zeros((19, len(KINDS)), np.float32))
