"""Few rows give what `F.linear` gives, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flamvid.ops import linear


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 9, 24, 60])
@pytest.mark.parametrize("sizes", [(24, 40), (40, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_few_rows_as_torch_has_it(rows: int, sizes: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 1, sizes[0], requires_grad=True)
    weight = torch.randn(sizes[1], sizes[0], requires_grad=True)
    bias = torch.randn(sizes[1]) if biased else None
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        quick = linear(x, weight, bias)
    assert quick.shape == theirs.shape
    assert quick.is_contiguous()
    torch.testing.assert_close(quick, theirs, atol=2e-5, rtol=1e-5)
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 30])
def test_memory_of_any_order(rows: int) -> None:
    x, weight = torch.randn(64, rows).T, torch.randn(64, 96).T[::2]
    torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=2e-5, rtol=1e-5)


def test_few_rows_are_an_operation_of_torch() -> None:
    torch.library.opcheck(
        torch.ops.flamvid.linear_few.default, (torch.randn(3, 40), torch.randn(7, 40))
    )
    with pytest.raises(RuntimeError):  # past the door nothing is read that is not there
        torch.ops.flamvid.linear_few(torch.randn(3, 40), torch.randn(7, 41))


def test_other_types_stay_torch_s_own() -> None:
    x, weight = torch.randn(3, 40, dtype=torch.bfloat16), torch.randn(7, 40, dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
