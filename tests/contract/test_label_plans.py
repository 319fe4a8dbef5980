"""Which class each candidate gets: counts to the unit, whatever the classes' sizes and errors are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgen import sampling
from synthgen.config.load import load
from synthgen.errors import ConfigError, DataError
from synthgen.types import UNLABELLED

SIZES = st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any)
QUICK = settings(max_examples=60, deadline=None)


def of_sizes(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)


def counts(labels: np.ndarray, num: int, plan: str, num_classes: int = 0, **kwargs) -> list[int]:
    k = num_classes or int(labels.max()) + 1
    made = sampling.label_plan(labels, k, num, plan, 0, **kwargs)
    assert made.dtype == np.int64
    found = np.bincount(made, minlength=k)
    assert (found == sampling.label_counts(labels, k, num, plan, **kwargs)).all()
    return found.tolist()


# Exact counts


def test_match_and_balanced():
    labels = of_sizes(30, 10)
    assert counts(labels, 100, "match") == [75, 25]
    assert counts(labels, 101, "balanced") == [51, 50]


def test_fill_gives_each_class_what_it_lacks_of_the_largest_whatever_num_is():
    labels = of_sizes(30, 10, 22)
    assert counts(labels, 100, "fill") == [0, 20, 8]
    assert counts(labels, 1, "fill") == [0, 20, 8]
    assert counts(labels, 100, "fill", fill_to=25) == [0, 15, 3]
    assert counts(labels, 100, "fill", fill_to=50) == [20, 40, 28]
    assert counts(of_sizes(3, 1), 100, "fill", num_classes=3) == [0, 2, 3]  # a class without an image is filled too


def test_weak_is_in_proportion_to_the_errors():
    labels = of_sizes(10, 10, 10)
    assert counts(labels, 100, "weak", errors=np.array([0.1, 0.1, 0.3])) == [20, 20, 60]
    assert counts(labels, 3, "weak", errors=np.array([0.001, 0.9, 0.001])) == [1, 1, 1]
    assert counts(labels, 2, "weak", errors=np.array([0.001, 0.9, 0.001])) == [0, 2, 0]


@QUICK
@given(SIZES, st.integers(1, 500), st.sampled_from(["match", "balanced", "weak"]), st.data())
def test_every_plan_but_fill_hands_out_num_and_is_off_its_share_by_less_than_one(sizes, num, plan, data):
    labels, k = of_sizes(*sizes), len(sizes)
    errors = np.array(data.draw(st.lists(st.floats(0.01, 0.99), min_size=k, max_size=k)))
    found = np.array(counts(labels, num, plan, k, errors=errors))
    share = {"match": np.array(sizes) / sum(sizes), "balanced": np.full(k, 1 / k), "weak": errors / errors.sum()}[plan]
    assert found.sum() == num
    if plan == "weak" and num >= k:
        assert found.min() >= 1
        assert (found - share * num < 1.0 + 1e-9).all()
    else:
        assert (np.abs(found - share * num) < 1.0 + 1e-9).all()


@QUICK
@given(SIZES, st.none() | st.integers(1, 60))
def test_filled_classes_have_fill_to_images_or_what_they_had(sizes, fill_to):
    target = max(sizes) if fill_to is None else fill_to
    if min(sizes) >= target:
        with pytest.raises(ConfigError, match="nothing to fill up"):
            counts(of_sizes(*sizes), 7, "fill", len(sizes), fill_to=fill_to)
        return
    found = counts(of_sizes(*sizes), 7, "fill", len(sizes), fill_to=fill_to)
    assert [have + made for have, made in zip(sizes, found, strict=True)] == [max(have, target) for have in sizes]


def test_the_order_is_shuffled_by_the_seed_alone():
    labels = of_sizes(30, 10)
    first, again, other = (sampling.label_plan(labels, 2, 100, "fill", seed, fill_to=60) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert (np.diff(first) != 0).sum() > 10  # a chunk mixes classes


# What can't be planned


def test_nothing_to_fill_says_what_to_do():
    with pytest.raises(ConfigError, match=r"every class has 10 train images or more.*generate\.fill_to above 10.*labels=match"):
        counts(of_sizes(10, 10), 100, "fill")
    with pytest.raises(ConfigError, match=r"every class has 5 train images or more.*generate\.fill_to above 12"):
        counts(of_sizes(10, 12), 100, "fill", fill_to=5)


def test_weak_needs_errors():
    with pytest.raises(ValueError, match="weak without errors"):
        counts(of_sizes(2, 2), 10, "weak")


# Errors of the classes


def test_class_errors_are_smoothed_so_that_none_is_certain():
    right = np.eye(3)[[0, 0, 0, 0, 1, 1]].astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1, 0])
    assert sampling.class_errors(right, labels).tolist() == [2 / 7, 1 / 3, 1 / 2]


def test_class_errors_need_labelled_images():
    with pytest.raises(DataError, match=r"no val images.*split\.val"):
        sampling.class_errors(np.zeros((0, 3)), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="have no labels"):
        sampling.class_errors(np.full((2, 3), 1 / 3), np.array([0, UNLABELLED]))


@QUICK
@given(st.integers(2, 6), st.integers(1, 50), st.integers(0, 1000))
def test_a_class_that_is_got_wrong_more_often_gets_more(k, n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    errors = sampling.class_errors(rng.random((n, k)), labels)
    assert ((errors > 0) & (errors < 1)).all()
    found = np.array(counts(labels, 1000, "weak", k, errors=errors))
    assert (np.diff(found[np.argsort(errors, kind="stable")]) >= -1).all()


# Settings


def test_the_plans_are_settings():
    assert load("digits-smoke", ["generate.labels=weak"]).generate.labels == "weak"
    assert load("digits-smoke", ["generate.labels=fill"]).generate.fill_to is None
    assert load("digits-smoke", ["generate.labels=fill", "generate.fill_to=200"]).generate.fill_to == 200
    for fault in (["generate.fill_to=200"], ["generate.labels=weak", "generate.fill_to=200"]):
        with pytest.raises(ConfigError, match="generate: fill_to is for labels=fill"):
            load("digits-smoke", fault)
    with pytest.raises(ConfigError, match=r"generate\.labels: input should be 'match', 'balanced', 'fill' or 'weak'"):
        load("digits-smoke", ["generate.labels=rare"])
