"""Batches of several networks: each network's rows, labels and order are its own, and those of training it alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen.data.stacks import Source, Stack, StackBatch, one_hot
from synthgen.data.transforms import to_float
from synthgen.errors import DataError
from synthgen.training import Keyed
from synthgen.types import UNLABELLED, Batch

CLASSES = 24


def numbered(n: int, first: int = 0) -> Batch:
    """Images whose pixels and label are both their number."""
    numbers = np.arange(first, first + n)
    images = np.broadcast_to(numbers[:, None, None, None], (n, 1, 4, 4)).astype(np.uint8)
    return Batch(images, numbers.astype(np.int64), tuple(str(i) for i in numbers))


def source(batch: Batch, rows: list[np.ndarray], count: int, labelled: bool = True) -> Source:
    targets = tuple(one_hot(batch.labels[own], CLASSES) for own in rows) if labelled else None
    return Source(batch.images, tuple(rows), targets, count)


def shown(images: torch.Tensor) -> np.ndarray:
    """Numbers of the images, shape (s, b)."""
    return np.rint((images[:, :, 0, 0, 0].numpy() + 1) * 127.5).astype(int)


def shared(n: int, networks: int, count: int) -> Source:
    batch = numbered(n)
    return Source.shared(batch.images, one_hot(batch.labels, CLASSES), networks, count)


def same(one: StackBatch, other: StackBatch) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


# Orders


@pytest.mark.parametrize("count", [1, 8, 10, 24, 60])
def test_each_pass_of_each_network_is_a_permutation(count):
    stack = Stack([shared(24, 3, count)], [0, 1, 7])
    seen = np.concatenate([shown(stack[step].images) for step in range(3 * 24 // count + 1)], axis=1)
    passes = seen[:, : seen.shape[1] // 24 * 24].reshape(3, -1, 24)
    assert passes.shape[1] >= 2
    assert (np.sort(passes, axis=2) == np.arange(24)).all()
    orders = passes.reshape(-1, 24)
    assert len(np.unique(orders, axis=0)) == len(orders), "another order for each pass and each network"


def test_the_order_is_that_of_training_alone():
    """`training.Keyed` gives a classifier its batches; a network of a stack has the same ones under the same seed."""
    first, second = numbered(19), numbered(5, 19)
    sources = [shared(19, 2, 7), source(second, [np.arange(5)] * 2, 3)]
    stack = Stack(sources, [3, 4])
    for network, seed in enumerate((3, 4)):
        alone = Keyed([(first, 7), (second, 3)], seed, torch.device("cpu"))
        for step in range(12):
            images, labels = alone[step]
            batch = stack[step]
            assert torch.equal(batch.images[network], images)
            assert torch.equal(batch.targets[network].argmax(1), labels)


def test_a_network_depends_on_its_own_seed_and_rows_alone():
    batch, few, many = numbered(24), np.array([2, 3, 5, 7, 11]), np.arange(24)
    together = Stack([source(batch, [many, few, many], 8)], [0, 1, 2])
    alone = Stack([source(batch, [few], 8)], [1])
    changed = Stack([source(batch, [few[:2], few, few], 8)], [9, 1, 5])
    for step in range(10):
        own = alone[step]
        assert set(shown(own.images)[0]) <= set(few)
        for other in (together, changed):
            assert torch.equal(other[step].images[1], own.images[0])
            assert torch.equal(other[step].targets[1], own.targets[0])


def test_a_batch_is_fixed_by_its_step_in_any_order():
    one, two = (Stack([shared(10, 2, 7)], [0, 1]) for _ in range(2))
    in_order = [one[step] for step in range(12)]
    for step in (11, 3, 4, 0, 7):
        assert same(two[step], in_order[step])


# What a batch holds


def test_images_keep_their_targets_and_sources_their_counts():
    real, synthetic = numbered(10), numbered(6, 10)
    soft = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 6).astype(np.float32)
    sources = [
        Source.shared(real.images, one_hot(real.labels, CLASSES), 2, 5),
        Source.shared(synthetic.images, soft, 2, 3),
    ]
    stack = Stack(sources, [0, 1])
    for step in range(6):
        batch = stack[step]
        assert batch.unlabelled is None
        assert batch.images.shape == (2, 8, 1, 4, 4)
        numbers = shown(batch.images)
        assert (numbers[:, :5] < 10).all()
        assert (numbers[:, 5:] >= 10).all()
        assert np.array_equal(batch.targets[:, :5].argmax(2).numpy(), numbers[:, :5])
        assert np.array_equal(batch.targets[:, 5:].numpy(), soft[numbers[:, 5:] - 10])


def test_each_network_has_its_own_labels_of_the_same_images():
    batch = numbered(6)
    ones = one_hot(np.zeros(6, np.int64), CLASSES), one_hot(np.ones(6, np.int64), CLASSES)
    stack = Stack([Source(batch.images, (np.arange(6),) * 2, ones, 4)], [0, 0])
    found = stack[0]
    assert torch.equal(found.images[0], found.images[1])
    assert (found.targets[0].argmax(1) == 0).all()
    assert (found.targets[1].argmax(1) == 1).all()


def test_images_without_labels_stand_beside():
    labelled, unlabelled = shared(10, 2, 4), source(numbered(8, 10), [np.arange(8)] * 2, 6, labelled=False)
    stack = Stack([labelled, unlabelled], [0, 1])
    batch = stack[0]
    assert batch.images.shape == (2, 4, 1, 4, 4)
    assert batch.targets.shape == (2, 4, CLASSES)
    assert batch.unlabelled is not None
    assert batch.unlabelled.shape == (2, 6, 1, 4, 4)
    assert (shown(batch.unlabelled) >= 10).all()
    assert torch.equal(batch.images, Stack([labelled], [0, 1])[0].images), "they change nothing in the labelled ones"


def test_pixels_are_those_of_every_network_of_the_factory():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    stack = Stack([Source.shared(images, one_hot(np.arange(5), CLASSES), 1, 5)], [0])
    batch = stack[0]
    assert torch.equal(batch.images[0], to_float(images)[batch.targets[0].argmax(1)])
    assert batch.images.dtype == batch.targets.dtype == torch.float32


# Refusals


def test_a_network_without_rows_is_refused():
    with pytest.raises(DataError, match="need as many sets of rows, none empty"):
        Stack([source(numbered(6), [np.arange(6), np.arange(0)], 4)], [0, 1])


def test_rows_for_other_than_all_networks_are_refused():
    with pytest.raises(DataError, match=r"3 networks need as many sets of rows.*found 2"):
        Stack([shared(6, 2, 4)], [0, 1, 2])


@pytest.mark.parametrize("wrong", [UNLABELLED, 3, 7])
def test_a_label_outside_of_the_classes_is_refused(wrong):
    with pytest.raises(DataError, match=f"label {wrong}: images to train on need a label of 0 to 2"):
        one_hot(np.array([0, 2, wrong, 1]), 3)


def test_one_hot_of_known_labels():
    assert np.array_equal(one_hot(np.array([2, 0]), 3), np.array([[0, 0, 1], [1, 0, 0]], np.float32))
    assert one_hot(np.zeros(0, np.int64), 3).shape == (0, 3)
