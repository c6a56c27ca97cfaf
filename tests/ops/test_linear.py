"""Few rows give what `F.linear` gives, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flamvid.ops import linear


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 9])
@pytest.mark.parametrize("sizes", [(24, 40), (40, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_few_rows_as_torch_has_it(rows: int, sizes: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(rows, 1, sizes[0], requires_grad=True)
    weight = torch.randn(sizes[1], sizes[0], requires_grad=True)
    bias = torch.randn(sizes[1]) if biased else None
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.shape == theirs.shape
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs)
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
