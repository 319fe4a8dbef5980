"""Metrics against independent formulas: scipy, torchmetrics, and brute force in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from torch import nn

from synthgen.metrics.copies import expected_nearest
from synthgen.metrics.frechet import frechet_distance
from synthgen.metrics.kernel import kid
from synthgen.metrics.lowlevel import NAMES, lowlevel
from synthgen.metrics.neighbours import knn
from synthgen.metrics.pixels import principal_components
from synthgen.metrics.prdc import prdc


def two_sets(n: int, m: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of two sets whose means and covariances differ."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mix, 1.2 * rng.normal(size=(m, d)) @ mix + 0.3


def fid_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(covariance_x @ covariance_y).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(covariance_x + covariance_y - 2 * root))


def fid_by_roots(x: np.ndarray, y: np.ndarray) -> float:
    """Through the eigenvectors of both, which singular covariances allow."""

    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(np.where(values > 1e-12 * values.max(), values, 0)) @ vectors.T

    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    nuclear = np.linalg.svd(root(covariance_x) @ root(covariance_y), compute_uv=False).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(covariance_x + covariance_y) - 2 * nuclear)


def prdc_by_hand(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    radius_x, radius_y = (np.sort(cdist(z, z), axis=1)[:, k] for z in (x, y))  # column 0 is the point itself
    between = cdist(x, y)
    in_x, in_y = between < radius_x[:, None], between < radius_y[None, :]
    return in_x.any(0).mean(), in_y.any(1).mean(), in_x.sum(0).mean() / k, in_x.any(1).mean()


def kid_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    xx, yy, n, m = kernel(x, x), kernel(y, y), len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


@pytest.mark.parametrize(("n", "m", "d"), [(400, 300, 16), (1500, 2100, 40)])
def test_fid_against_scipy(n: int, m: int, d: int) -> None:
    x, y = two_sets(n, m, d)
    assert frechet_distance(x, y) == pytest.approx(fid_by_scipy(x, y), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(30, 20, 64), (30, 500, 64), (500, 30, 64), (64, 65, 64)])
def test_fid_with_fewer_images_than_dimensions(n: int, m: int, d: int) -> None:
    x, y = two_sets(n, m, d)
    assert frechet_distance(x, y) == pytest.approx(fid_by_roots(x, y), rel=1e-8)


def test_fid_with_dead_features() -> None:
    """Features that are 0 throughout, as ReLU gives, make the covariance singular."""
    x, y = two_sets(300, 300, 24)
    x[:, 5:9] = y[:, 5:9] = 0
    x[:, 11] = x[:, 10]
    assert frechet_distance(x, y) == pytest.approx(fid_by_roots(x, y), rel=1e-6)


def test_fid_against_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.image.fid import FrechetInceptionDistance

        class Flat(nn.Module):
            num_features = 48

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return images.flatten(1).double() / 255

        theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 4, 4)).set_dtype(torch.float64)
        rng = np.random.default_rng(0)
        real = torch.from_numpy(rng.integers(0, 256, (400, 3, 4, 4)).astype(np.uint8))
        fake = torch.from_numpy(rng.integers(60, 256, (300, 3, 4, 4)).astype(np.uint8))
        theirs.update(real, real=True)
        theirs.update(fake, real=False)
        value = float(theirs.compute())
    assert frechet_distance(Flat()(real), Flat()(fake)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 8), (1100, 1300, 12)])
def test_kid_against_brute_force(n: int, m: int, d: int) -> None:
    x, y = two_sets(n, m, d)
    assert kid(x, y) == pytest.approx(kid_by_hand(x, y), rel=1e-9)


def test_kid_against_torchmetrics() -> None:
    """With subsets as large as the sets, the mean over subsets is the full estimate."""
    from torchmetrics.image.kid import poly_mmd

    x, y = two_sets(200, 200, 12)
    ours = kid(x, y)
    tensors = [torch.from_numpy(z) for z in (x, y)]
    kernels = [(a @ b.T / 12 + 1) ** 3 for a, b in ((tensors[0], tensors[0]), (tensors[0], tensors[1]), (tensors[1], tensors[1]))]
    from torchmetrics.image.kid import maximum_mean_discrepancy

    assert ours == pytest.approx(float(maximum_mean_discrepancy(*kernels)), rel=1e-9)
    assert ours == pytest.approx(float(poly_mmd(*tensors)), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d", "k"), [(60, 90, 4, 5), (700, 600, 10, 3), (1200, 1100, 32, 5)])
def test_prdc_against_brute_force(n: int, m: int, d: int, k: int) -> None:
    x, y = two_sets(n, m, d)
    assert tuple(prdc(x, y, k)) == pytest.approx(prdc_by_hand(x, y, k), abs=1e-12)


def test_knn_against_brute_force() -> None:
    x, y = two_sets(700, 600, 6)
    distances, rows = knn(x, y, 4)
    every = cdist(x, y)
    assert distances.numpy() == pytest.approx(np.sort(every, axis=1)[:, :4], rel=1e-9)
    assert np.take_along_axis(every, rows.numpy(), axis=1) == pytest.approx(distances.numpy(), rel=1e-9)
    own, rows = knn(x, x, 2, exclude_self=True)
    assert own.numpy() == pytest.approx(np.sort(cdist(x, x), axis=1)[:, 1:3], rel=1e-7)
    assert not (rows == torch.arange(700)[:, None]).any()


@pytest.mark.parametrize("size", [1, 7, 40])
def test_expected_nearest_is_the_mean_over_draws(size: int) -> None:
    rng = np.random.default_rng(0)
    distances = rng.random((3, 40))
    draws = np.stack([rng.permutation(40)[:size] for _ in range(4000)])
    means = distances[:, draws].min(axis=2).mean(axis=1)
    assert expected_nearest(torch.from_numpy(distances), size).numpy() == pytest.approx(means, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_and_float64_features_give_one_value(dtype: torch.dtype) -> None:
    """What is summed up is summed in float64, so a float32 input costs its own rounding only, whatever its mean."""
    x, y = (torch.from_numpy(z + 100).to(dtype) for z in two_sets(500, 400, 20))
    wide = x.double().numpy(), y.double().numpy()
    assert frechet_distance(x, y) == pytest.approx(fid_by_scipy(*wide), rel=1e-8)
    assert kid(x, y) == pytest.approx(kid_by_hand(*wide), rel=1e-6)
    assert tuple(prdc(x, y, 5)) == pytest.approx(prdc_by_hand(*wide, 5), abs=1e-12)


def test_numpy_and_torch_give_one_value() -> None:
    x, y = two_sets(60, 50, 8)
    for function in (frechet_distance, kid, prdc):
        assert function(x, y) == function(torch.from_numpy(x), torch.from_numpy(y))


def test_low_level_statistics_by_hand() -> None:
    """A checkerboard of 0 and 255: all its power is at the Nyquist frequency, half of it is bright, none is grey."""
    board = np.indices((8, 8)).sum(axis=0) % 2 * 255
    row = dict(zip(NAMES, lowlevel(board[None, None].astype(np.uint8))[0].tolist(), strict=True))
    assert row["high_frequency"] == pytest.approx(1)
    assert row["mean"] == pytest.approx(0.5)
    assert row["sd"] == pytest.approx(0.5)
    assert row["border_sd"] == pytest.approx(0.5)
    assert row["grey_share"] == 0
    assert row["quartile"] == 0
    inner = 16.0  # 4 neighbours differ by 1; at the border the edge repeats: 3 of 4, in the corners 2
    assert row["laplacian"] == pytest.approx(np.log((36 * inner + 24 * 9 + 4 * 4) / 64), abs=1e-4)


@pytest.mark.parametrize(("shape", "dims"), [((1, 8, 8), 64), ((3, 8, 8), 20), ((1, 33, 40), 30)])
def test_principal_components_against_sklearn(shape: tuple[int, int, int], dims: int) -> None:
    """Up to the sign of an axis; images of 32 px and more are averaged down first."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(12, int(np.prod(shape))))

    def draw(n: int) -> np.ndarray:
        latent = rng.normal(size=(n, 12)) * np.linspace(3, 1, 12)
        noise = rng.normal(0, 8, (n, mix.shape[1]))
        return np.clip(128 + 8 * latent @ mix + noise, 0, 255).astype(np.uint8).reshape(n, *shape)

    def flat(images: np.ndarray) -> np.ndarray:
        x = images.astype(np.float64) / 255
        if shape[1] >= 32:
            x = x[..., : shape[1] // 2 * 2, : shape[2] // 2 * 2].reshape(len(x), shape[0], shape[1] // 2, 2, shape[2] // 2, 2)
            x = x.mean(axis=(3, 5))
        return x.reshape(len(x), -1)

    images, reference = draw(70), draw(400)
    dims = min(dims, flat(reference).shape[1])
    theirs = PCA(dims, svd_solver="full").fit(flat(reference)).transform(flat(images))
    ours = principal_components(images, reference, dims).double().numpy()
    assert ours.shape == theirs.shape
    sign = np.sign((ours * theirs).sum(axis=0))
    assert ours == pytest.approx(sign * theirs, abs=2e-3)
    assert principal_components(images, reference, dims).numpy() == pytest.approx(ours)
    assert (principal_components(images[:5], reference, dims).numpy() - ours[:5]) == pytest.approx(0, abs=1e-5)


def test_principal_components_are_no_more_than_the_reference_has_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8)).astype(np.uint8)
    assert principal_components(images, images[:7], 64).shape == (30, 7)
    assert principal_components(images, images, 5).shape == (30, 5)
