"""Splits: stratified, nested, never across a group or a near duplicate, test fixed by the seed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from synthgen.config.schema import DataConfig, SplitConfig
from synthgen.data.sources import RealImages, load
from synthgen.data.splits import leakage_blocks, leaking, near_test, role_batch, split
from synthgen.errors import DataError
from synthgen.types import UNLABELLED, Batch, DatasetSpec


def images(labels: np.ndarray, groups: list[str] | None = None, given: list[str] | None = None) -> RealImages:
    n, names = len(labels), tuple(str(k) for k in range(int(labels.max()) + 1))
    batch = Batch(np.zeros((n, 1, 8, 8), np.uint8), labels.astype(np.int64), tuple(f"real-{i:06d}" for i in range(n)))
    return RealImages(
        spec=DatasetSpec("toy", (1, 8, 8), names, groups is not None, ""),
        batch=batch,
        groups=None if groups is None else tuple(groups),
        given=None if given is None else tuple(given),
        origins=batch.keys,
        converted={},
        quarantined={},
        sizes={},
    )


@pytest.fixture(scope="module")
def digits() -> RealImages:
    return load(DataConfig())


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[role], other[role]) for role in one)


def sizes(roles: dict[str, np.ndarray]) -> dict[str, int]:
    return {role: len(rows) for role, rows in roles.items()}


PAIRS = np.arange(1797) - np.arange(1797) % 2 * (np.arange(1797) < 1796)
"""Near-duplicate groups of two."""


def test_counts_are_exact_and_stratified(digits: RealImages):
    roles = split(digits, SplitConfig(train=50, val=50, reference=300, test=0.5))
    assert sizes(roles) == {"train": 50, "val": 50, "reference": 300, "test": 898, "pool": 0}
    assert len(np.unique(np.concatenate(list(roles.values())))) == 1298
    assert all((np.diff(rows) > 0).all() for rows in roles.values())
    for role, each, slack in (("train", 5, 0), ("val", 5, 0), ("reference", 30, 1), ("test", 90, 3)):
        assert np.abs(np.bincount(digits.batch.labels[roles[role]]) - each).max() <= slack, role


@pytest.mark.parametrize("seed", range(5))
def test_train_is_five_a_class_at_every_seed(digits: RealImages, seed: int):
    roles = split(digits, SplitConfig(seed=seed, train=50, val=50, reference=300, test=0.5))
    assert np.bincount(digits.batch.labels[roles["train"]]).tolist() == [5] * 10


def test_the_seed_alone_decides(digits: RealImages):
    config = SplitConfig(train=50, val=50, reference=300, test=0.5)
    first = split(digits, config)
    assert same(first, split(digits, config))
    assert not np.array_equal(first["test"], split(digits, config.model_copy(update={"seed": 1}))["test"])


def test_test_does_not_depend_on_the_other_sizes_and_train_is_nested(digits: RealImages):
    config = SplitConfig(train=50, val=50, reference=300, test=0.5)
    small, large = split(digits, config), split(digits, config.model_copy(update={"train": 100.0}))
    other = split(digits, SplitConfig(train=None, val=0.1, reference=0, test=0.5))
    assert np.array_equal(small["test"], large["test"])
    assert np.array_equal(small["test"], other["test"])
    assert set(small["train"]) < set(large["train"])
    assert np.array_equal(small["val"], large["val"])
    assert sum(len(rows) for rows in other.values()) == 1797


def test_splits_without_a_pool_are_what_they_were_before_there_was_one(digits: RealImages):
    for config, near, expected in (
        (SplitConfig(train=50, val=50, reference=300, test=0.5), None, "6f14bc004b09ee4e"),
        (SplitConfig(seed=3, train=100), PAIRS, "99a51e3a2a7d7c7d"),
        (SplitConfig(seed=1), None, "06dcfb2a481ae6b2"),
    ):
        roles = split(digits, config, near)
        rows = b"".join(roles[role].astype("<i8").tobytes() for role in ("train", "val", "reference", "test"))
        assert hashlib.sha256(rows).hexdigest()[:16] == expected
        assert len(roles["pool"]) == 0


@pytest.mark.parametrize("near", [None, PAIRS], ids=["single", "pairs"])
def test_the_pool_changes_no_other_role(digits: RealImages, near: np.ndarray | None):
    config = SplitConfig(train=50, val=50, reference=300, test=0.5)
    without, pooled = split(digits, config, near), split(digits, config.model_copy(update={"pool": 300.0}), near)
    assert all(np.array_equal(without[role], pooled[role]) for role in without if role != "pool")
    assert abs(len(pooled["pool"]) - 300) <= (0 if near is None else 5)
    assert np.abs(np.bincount(digits.batch.labels[pooled["pool"]]) - 30).max() <= (1 if near is None else 3)
    everything = np.concatenate(list(pooled.values()))
    assert len(np.unique(everything)) == len(everything)
    if near is not None:
        assert not np.intersect1d(near[pooled["pool"]], near[np.setdiff1d(everything, pooled["pool"])]).size
    else:
        larger = split(digits, config.model_copy(update={"pool": 300.0, "train": 100.0}))
        assert set(without["train"]) < set(larger["train"])


def test_pool_or_train_takes_what_is_left(digits: RealImages):
    rest = split(digits, SplitConfig(train=50, val=50, reference=300, test=0.5, pool=None))
    assert sizes(rest) == {"train": 50, "val": 50, "reference": 300, "test": 898, "pool": 499}
    first = split(digits, SplitConfig(train=None, val=50, reference=300, test=0.5, pool=200))
    assert sizes(first) == {"train": 349, "val": 50, "reference": 300, "test": 898, "pool": 200}
    assert sizes(split(digits, SplitConfig(train=0.1, val=0.1, reference=0, test=898, pool=0.25)))["pool"] == 449
    with pytest.raises(ValidationError, match="train and pool can't both be what is left over"):
        SplitConfig(train=None, pool=None)
    with pytest.raises(DataError, match=r"test=0.5, pool=600 ask for 1000 images beside test, and 899 are left"):
        split(digits, SplitConfig(train=50, val=50, reference=300, test=0.5, pool=600))


def test_images_without_a_label_are_in_the_pool_or_nowhere():
    labels = np.tile([0, 1, UNLABELLED], 40)
    config = SplitConfig(train=20, val=10, reference=10, test=20, pool=6)
    roles = split(images(labels), config)
    assert sizes(roles) == {"train": 20, "val": 10, "reference": 10, "test": 20, "pool": 46}
    assert (labels[roles["pool"]] == UNLABELLED).sum() == 40
    assert all((labels[roles[role]] != UNLABELLED).all() for role in ("train", "val", "reference", "test"))
    compact = split(images(labels[labels != UNLABELLED]), config)  # the labelled ones are split as they would be alone
    number = np.flatnonzero(labels != UNLABELLED)
    assert all(np.array_equal(number[compact[role]], roles[role]) for role in ("train", "val", "reference", "test"))
    shares = split(images(labels), SplitConfig(train=None, val=0.25, reference=0.25, test=0.25))
    assert (len(shares["test"]), len(shares["val"]), len(shares["reference"])) == (20, 20, 20)


def test_an_image_without_a_label_that_is_tied_to_test_val_or_reference_is_used_by_nobody():
    labels = np.concatenate([np.tile([0, 1], 40), np.full(80, UNLABELLED)])
    groups = [f"patient {i % 80 // 4}" for i in range(160)]  # each with labelled and unlabelled images
    roles = split(images(labels, groups=groups), SplitConfig(train=20, val=12, reference=12, test=20))
    of = np.array(groups)
    assert set(of[roles["pool"]]) == set(of[:80]) - {g for role in ("test", "val", "reference") for g in of[roles[role]]}
    assert set(of[roles["train"]]) <= set(of[roles["pool"]])
    assert (labels[roles["pool"]] == UNLABELLED).all()


def test_unlabelled_images_of_a_given_test_split_are_used_by_nobody():
    labels = np.concatenate([np.tile([0, 1], 50), np.full(6, UNLABELLED)])
    real = images(labels, given=["train"] * 60 + ["test"] * 40 + ["train"] * 3 + ["test"] * 3)
    near = np.arange(106)
    near[[100, 101, 102]] = [5, 70, 105]  # tied to a labelled image, to a test image, to an unlabelled one of the test split
    roles = split(real, SplitConfig(train=None, val=0, reference=0, test=20), near)
    assert roles["pool"].tolist() == [100]
    assert len(roles["test"]) == 20
    assert 5 in roles["train"]


def test_test_images_with_a_near_duplicate_elsewhere_are_named():
    roles = {"train": np.array([0, 1]), "val": np.array([2]), "test": np.array([3, 4]), "pool": np.array([5])}
    found = near_test(roles, np.array([0, 1, 2, 1, 4, 4]))
    assert {role: rows.tolist() for role, rows in found.items()} == {"train": [3], "val": [], "pool": [4]}


def test_a_rare_class_reaches_every_split():
    real = images(np.repeat([0, 1], [990, 10]))
    roles = split(real, SplitConfig(train=20, val=20, reference=20, test=0.3))
    assert all((real.batch.labels[roles[role]] == 1).any() for role in ("train", "val", "reference", "test"))


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_never_cut(seed: int):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 40, 600)
    real = images(rng.integers(0, 3, 600), groups=[f"patient {g}" for g in groups])
    roles = split(real, SplitConfig(seed=seed, train=None, val=0.2, reference=0.2, test=0.3))
    held = [set(groups[rows]) for rows in roles.values()]
    assert sum(len(h) for h in held) == 40
    assert sorted(np.concatenate(list(roles.values()))) == list(range(600))
    assert abs(len(roles["test"]) - 180) <= max(np.bincount(groups))


def test_near_duplicates_stay_together_and_counts_are_still_met(digits: RealImages):
    near = np.arange(1797)
    near[1::2] = near[:-1:2]  # pairs
    config = SplitConfig(train=50, val=50, reference=300, test=0.5)
    roles = split(digits, config, near)
    held = [set(near[rows]) for rows in roles.values()]
    assert sum(len(h) for h in held) == len(set.union(*held))
    assert abs(len(roles["train"]) - 50) <= 5
    apart = split(digits, config.model_copy(update={"keep_near_duplicates_together": False}), near)
    assert same(apart, split(digits, config))


def test_few_pairs_among_single_images_leave_the_counts_exact(digits: RealImages):
    near = np.arange(1797)
    near[1000:1010] = near[:10]
    roles = split(digits, SplitConfig(train=50, val=50, reference=300, test=0.5), near)
    assert sizes(roles) == {"train": 50, "val": 50, "reference": 300, "test": 898, "pool": 0}


def test_groups_and_near_duplicates_join():
    real = images(np.zeros(5), groups=["a", "a", "b", "c", "d"])
    blocks = leakage_blocks(real, np.array([0, 1, 1, 3, 4]))
    assert blocks[0] == blocks[1] == blocks[2]
    assert len(set(blocks)) == 3


def test_a_given_test_split_is_the_only_pool_of_test():
    labels = np.tile([0, 1], 50)
    real = images(labels, given=["train"] * 60 + ["test"] * 40)
    whole = split(real, SplitConfig(train=None, val=10, reference=0.5, test=0.3))
    assert whole["test"].tolist() == list(range(60, 100))
    assert (len(whole["val"]), len(whole["reference"]), len(whole["train"])) == (10, 30, 20)
    part = split(real, SplitConfig(train=10, val=10, reference=10, test=20))
    assert len(part["test"]) == 20
    assert part["test"].min() >= 60
    assert max(part["train"].max(), part["val"].max(), part["reference"].max()) < 60
    with pytest.raises(DataError, match=r"split.test=41: asks for 41 images, and the given test split has 40"):
        split(real, SplitConfig(test=41))


def test_what_is_tied_to_given_test_images_leaves_train():
    real = images(np.tile([0, 1], 50), given=["train"] * 60 + ["test"] * 40)
    near = np.arange(100)
    near[[70, 99]] = [3, 4]
    roles = split(real, SplitConfig(train=None, val=10, reference=10, test=0.3), near)
    assert leaking(real, leakage_blocks(real, near)).tolist() == [3, 4]
    assert len(roles["test"]) == 40
    assert not {3, 4} & set(np.concatenate(list(roles.values())))
    with pytest.raises(DataError, match="ask for 60 images beside test, and 58 are left"):
        split(real, SplitConfig(train=40, val=10, reference=10, test=0.3), near)


def test_refusals(digits: RealImages):
    with pytest.raises(DataError, match=r"train=1000, val=0.15.*ask for 1629 images beside test, and 1258 are left"):
        split(digits, SplitConfig(train=1000))
    with pytest.raises(DataError, match=r"split.test=2000: asks for 2000 images, and there are 1797"):
        split(digits, SplitConfig(test=2000))
    with pytest.raises(DataError, match=r"split.val=12.5: a count must be whole"):
        split(digits, SplitConfig(val=12.5))
    with pytest.raises(DataError, match=r"no image is left for train"):
        split(digits, SplitConfig(val=360, reference=0.3, test=0.5))
    with pytest.raises(
        DataError, match=r"split.test: 3 images can.t be taken without cutting a group .*: the smallest of 2 groups"
    ):
        split(images(np.tile([0, 1], 50), groups=["a", "b"] * 50), SplitConfig(test=3))


def test_a_role_without_labels_hides_them(digits: RealImages):
    rows = np.array([3, 5])
    assert role_batch(digits, rows, labelled=True).labels.tolist() == digits.batch.labels[rows].tolist()
    hidden = role_batch(digits, rows, labelled=False)
    assert hidden.labels.tolist() == [UNLABELLED, UNLABELLED]
    assert hidden.keys == ("real-000003", "real-000005")
