"""One tiny data set and one tiny configuration for all tests; shapes in annotations are checked while the tests run."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from jaxtyping import install_import_hook

CHECKED = (
    "synthgen.models",
    "synthgen.metrics",
    "synthgen.sampling",
    "synthgen.training",
    "synthgen.data.transforms",
    "synthgen.data.policies",
    "synthgen.data.mixing",
    "synthgen.data.stacks",
    "synthgen.gain",
)
install_import_hook(list(CHECKED), "beartype.beartype")

import numpy as np
import pytest
import torch

from synthgen.config.load import load
from synthgen.config.schema import RunConfig
from synthgen.gain.data import StudyData
from synthgen.types import UNLABELLED, Batch, DatasetSpec
from tests.faults import figures

LONGEST = ("test_kills", "test_io", "test_mutants", "test_cli", "test_disk", "test_power", "test_notebook", "test_determinism")
"""Files that take longest, begun first, so that no core waits for the other at the end."""


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def pytest_terminal_summary(terminalreporter):
    """One line with the figures of the reliability suites."""
    reports = [report for each in terminalreporter.stats.values() for report in each if hasattr(report, "user_properties")]
    called = [report for report in reports if getattr(report, "when", "") == "call"]
    counted = [value for report in called for name, value in report.user_properties if name == "figure"]
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if "tests/faults/" in report.nodeid]
    if shown := figures.line([tuple(value) for value in counted]):
        terminalreporter.write_line(f"{shown} · skipped {len(left_out)}" if left_out else shown)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """The smallest recipe, with a handful of steps."""
    few = [f"generators.{name}.steps=4" for name in ("vae", "vqvae", "gan", "diffusion")]
    return load("digits-smoke", [*few, "generators.diffusion.sampling_steps=3", "features.steps=4", "classifier.steps=4"])


def toy_images(n: int, shape: tuple[int, int, int], classes: int, seed: int = 0) -> Batch:
    """Images whose brightness pattern tells the class, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    patterns = rng.integers(0, 200, (classes, *shape))
    images = np.clip(patterns[labels] + rng.normal(0, 25, (n, *shape)), 0, 255).astype(np.uint8)
    return Batch(images, labels.astype(np.int64), tuple(f"real-{i:06d}" for i in range(n)))


def blank_images(n: int, prefix: str, labels: np.ndarray | None = None) -> Batch:
    """Black 8x8 images of 3 classes, in turn unless `labels` says otherwise: for what never looks at pixels."""
    labels = np.arange(n) % 3 if labels is None else np.asarray(labels)
    return Batch(np.zeros((n, 1, 8, 8), np.uint8), labels.astype(np.int64), tuple(f"{prefix}-{i:03d}" for i in range(n)))


def blank_study(spec: DatasetSpec, num_val: int, **more: Any) -> StudyData:
    """The images of a gain study with everything that an arm may ask for but other generators, none of them looked at."""
    return StudyData(
        spec,
        blank_images(12, "train"),
        blank_images(num_val, "val"),
        blank_images(9, "reference", np.full(9, UNLABELLED)),
        blank_images(6, "pool", np.full(6, UNLABELLED)),
        gated=blank_images(126, "gated"),
        ungated=blank_images(150, "ungated"),
        with_copies=blank_images(135, "copies"),
        pool_labels=blank_images(6, "pool"),
        truth=np.arange(15) % 3,
        features=lambda pixels: pixels.reshape(len(pixels), -1),
        pretrained={},
        backbone=lambda pixels: pixels.reshape(len(pixels), -1),
        **more,
    )


@pytest.fixture
def toy() -> Batch:
    """24 grey 8x8 images of 3 classes."""
    return toy_images(24, (1, 8, 8), 3)


@pytest.fixture
def toy_spec() -> DatasetSpec:
    """What `toy` is."""
    return DatasetSpec("toy", (1, 8, 8), ("a", "b", "c"), False, "0" * 64)
