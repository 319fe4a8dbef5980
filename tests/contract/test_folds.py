"""Folds: even in the classes, no group cut, and a network of the gate blind to what it judges."""

import numpy as np
import pytest

from synthgen.data.folds import folds
from synthgen.jobs.gates import blind_folds


def test_folds_are_stratified_and_rare_classes_stay_in_training():
    labels = np.repeat(np.arange(4), [20, 11, 2, 1])
    fold = folds(labels, 5, 0, "test")
    assert np.bincount(fold[labels == 0]).tolist() == [4] * 5
    assert sorted(np.bincount(fold[labels == 1], minlength=5)) == [2, 2, 2, 2, 3]
    assert len(set(fold[labels == 2])) == 2
    assert fold[labels == 3].tolist() == [-1]
    assert np.array_equal(fold, folds(labels, 5, 0, "test"))
    assert not np.array_equal(fold, folds(labels, 5, 1, "test"))


def test_folds_keep_groups_whole_and_classes_learnable():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 200)
    labels = rng.integers(0, 4, 200)
    labels[groups == 7] = 4  # a class in one group alone
    fold = folds(labels, 5, 0, "test", groups)
    assert all(len(set(fold[groups == g])) == 1 for g in range(30))
    assert set(fold[groups == 7]) == {-1}
    assert set(fold) == {-1, 0, 1, 2, 3, 4}
    for each in range(5):
        assert set(labels[fold != each]) == set(range(5))
    assert np.bincount(fold[fold >= 0]).min() > 25
    names = np.array([f"patient-{g}" for g in groups])
    np.testing.assert_array_equal(fold >= 0, folds(labels, 5, 0, "test", names) >= 0)


def test_no_fold_holds_all_of_a_class_though_that_were_more_even():
    a, b, c = {0: 60, 2: 60}, {1: 100, 0: 1}, {0: 40, 2: 40, 1: 2}  # evenness alone puts b and c, all of class 1, into one
    counted = [(group, label, num) for group, has in enumerate((a, b, c)) for label, num in has.items()]
    groups, labels = (np.repeat([row[i] for row in counted], [row[2] for row in counted]) for i in (0, 1))
    fold = folds(labels, 2, 0, "test", groups)
    for each in range(2):
        assert set(labels[fold != each]) == {0, 1, 2}


def test_a_judge_is_blind_to_the_whole_block_of_what_it_judges():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 40, 300)
    labels = rng.integers(0, 5, 300)
    fold = blind_folds(labels, 4, 0, blocks)
    assert all(len(set(fold[blocks == block])) == 1 for block in range(40))
    for number in range(4):
        assert set(labels[fold != number]) == set(range(5)), "a judge that doesn't know a class"
        assert (fold == number).sum() > 50


def test_a_class_of_one_block_is_dealt_image_by_image():
    blocks = np.repeat(np.arange(10), 8)
    labels = np.where(blocks == 3, 1, 0)
    fold = blind_folds(labels, 4, 0, blocks)
    assert np.bincount(fold[labels == 1]).tolist() == [2, 2, 2, 2]
    assert all(len(set(fold[blocks == block])) == 1 for block in range(10) if block != 3)


@pytest.mark.parametrize("seed", range(40))
def test_every_judge_knows_every_class_where_a_block_is_all_of_one_and_part_of_another(seed):
    blocks = np.repeat([0, 0, 1, *range(2, 12)], [8, 1, 6, *[3] * 10])
    labels = np.repeat([1, 2, 2, 0], [8, 1, 6, 30])
    fold = blind_folds(labels, 4, seed, blocks)
    for number in range(4):
        assert set(labels[fold != number]) == {0, 1, 2}
    assert all(len(set(fold[blocks == block])) == 1 for block in range(2, 12))


def test_where_no_block_has_two_images_the_folds_are_as_even_as_they_can_be():
    labels = np.repeat(np.arange(3), [13, 8, 5])
    fold = blind_folds(labels, 4, 0, np.arange(26)[::-1])
    for kind, size in enumerate((13, 8, 5)):
        dealt = np.bincount(fold[labels == kind], minlength=4)
        assert dealt.sum() == size
        assert dealt.max() - dealt.min() <= 1
