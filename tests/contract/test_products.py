"""The product that tiles of distances are made of: one value on every path, and only large float32 ones leave torch.mm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthgen.metrics import products
from synthgen.metrics.products import WORTHWHILE, product

SMALL, LARGE = (7, 5, 3), (300, 200, 96)
PATHS = ("as it is", "without oneDNN", "without the operator")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "without oneDNN":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif request.param == "without the operator":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        monkeypatch.setattr(products, "_onednn", products._onednn.__wrapped__)
        assert products._onednn() is None
    return request.param


def factors(n: int, m: int, k: int, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)

    def one(rows: int) -> Tensor:
        x = torch.randn(2 * rows, 2 * k, generator=draws, dtype=torch.float64).to(dtype)
        if layout == "strided":
            return x[::2, ::2]
        if layout == "transposed":
            return x[:rows, :k].T.contiguous().T
        return x[:rows, :k].contiguous()

    a, b = one(n), one(m)
    assert a.is_contiguous() == b.is_contiguous() == (layout == "contiguous")
    return a, b


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_it_is_a_times_b_transposed(path: str, size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    a, b = factors(*size, dtype, layout)
    before = a.clone(), b.clone()
    found = product(a, b)
    assert found.dtype == dtype
    assert found.shape == (size[0], size[1])
    exact = a.double() @ b.double().T
    rounding = torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs().T)  # of a sum in this precision
    assert ((found.double() - exact).abs() <= 8 * rounding).all()
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_the_sizes_lie_on_either_side_of_what_is_worth_it() -> None:
    assert SMALL[0] * SMALL[1] * SMALL[2] < WORTHWHILE <= LARGE[0] * LARGE[1] * LARGE[2]


@pytest.mark.parametrize(
    ("size", "dtype", "fast"),
    [(LARGE, torch.float32, True), (SMALL, torch.float32, False), (LARGE, torch.float64, False)],
)
def test_only_large_float32_products_take_the_other_kernel(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int], dtype: torch.dtype, fast: bool
) -> None:
    taken: list[bool] = []

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        taken.append(a.is_contiguous() and b.is_contiguous())
        return a @ b.T

    monkeypatch.setattr(products, "_onednn", lambda: kernel)
    product(*factors(*size, dtype, "strided"))
    assert taken == ([True] if fast else [])


def test_the_same_product_twice_is_the_same_bytes() -> None:
    a, b = factors(*LARGE, torch.float32, "contiguous")
    assert torch.equal(product(a, b), product(a, b))


def test_a_kernel_that_is_not_exact_to_float32_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where matrix products may round to bfloat16 the check against float64 must refuse."""
    if products._onednn.__wrapped__() is None:
        pytest.skip("this torch comes without oneDNN's linear layer")

    class Rounding:
        @staticmethod
        def default(a: Tensor, b: Tensor, *_: object) -> Tensor:
            return (a.bfloat16() @ b.bfloat16().T).float()

    class Operators:
        _linear_pointwise = Rounding

    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    assert products._onednn.__wrapped__() is None


def test_autocast_does_not_reach_a_product() -> None:
    """A metric may be updated in a validation step that Lightning runs in half precision."""
    x = torch.arange(30, dtype=torch.float32).view(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = product(x, x)
    assert found.dtype == torch.float32
    assert torch.equal(found, x @ x.T)
