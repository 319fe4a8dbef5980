"""Randomness: the same numbers at (seed, stream, index) on every machine, and no others like them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from synthgen.randomness import normal, stream

KNOWN = {  # Philox4x64-10, drawn once with numpy 2.4
    (0, "noise", 0): [7712602489006505432, 2840914495664292445, 9190438003556915007],
    (0, "noise", 1): [7298458509865628178, 2847845130721117240, 7688489977288557132],
    (0, "dropout", 0): [8324545806834506014, 5707860857131453034, 752328170223054854],
    (7, "noise", 0): [2487576430522271191, 7556272438298711379, 5819799723480839764],
    (2**31, "order/1", 123456789): [7948026846035217477, 7077485395163450448, 4061504174808394087],
}


@pytest.mark.parametrize(("address", "numbers"), KNOWN.items())
def test_the_numbers_never_change(address, numbers):
    assert stream(*address).integers(2**63, size=3).tolist() == numbers


def test_the_normal_numbers_never_change():
    drawn = normal(0, "noise", np.array([3]), (4,))
    assert drawn.dtype == np.float32
    assert np.allclose(drawn, [[1.0688548, -2.7991095, -0.6731978, -0.06629199]], rtol=1e-6, atol=0)


def test_the_whole_name_and_index_are_the_key():
    """No bit is lost on the way, on whichever side of 2**63 the name's digest lies."""
    for name in ("noise", "order", "dropout", "a", "b", "split/test"):
        digest = int.from_bytes(hashlib.blake2b(f"5/{name}".encode(), digest_size=8).digest(), "little")
        state = stream(5, name, 2**53 + 1).bit_generator.state["state"]
        assert [int(part) for part in state["key"]] == [digest, 2**53 + 1]


def test_a_row_depends_on_its_index_alone():
    together = normal(0, "noise", np.arange(10), (1, 8, 8))
    assert together.shape == (10, 1, 8, 8)
    assert np.array_equal(normal(0, "noise", np.array([7, 2]), (1, 8, 8)), together[[7, 2]])
    assert np.array_equal(normal(0, "noise", np.arange(5, 10), (1, 8, 8)), together[5:])
    assert normal(0, "noise", np.arange(0), (1, 8, 8)).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    "addresses",
    [
        [(0, "noise", i) for i in range(200)],
        [(0, f"noise/{i}", 0) for i in range(200)],
        [(i, "noise", 0) for i in range(200)],
    ],
    ids=["index", "name", "seed"],
)
def test_neighbours_are_independent(addresses):
    """Largest correlation of 200 streams of 500 numbers: for independent ones it is about 4.4 / sqrt(500)."""
    rows = np.stack([stream(*address).standard_normal(500) for address in addresses])
    correlation = np.abs(np.corrcoef(rows) - np.eye(len(rows)))
    assert correlation.max() < 6 / np.sqrt(500)
    assert abs(rows.mean()) < 4 / np.sqrt(rows.size)
    assert abs(rows.std() - 1) < 4 / np.sqrt(2 * rows.size)


def test_seed_and_name_do_not_run_into_each_other():
    first = [stream(*address).random() for address in [(1, "1/x"), (11, "x"), (1, "x"), (0, "1/1/x"), (0, "x"), (0, "x", 1)]]
    assert len(set(first)) == len(first)


def test_the_global_state_is_neither_read_nor_moved():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = stream(0, "noise").random()
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert stream(0, "noise").random() == first
