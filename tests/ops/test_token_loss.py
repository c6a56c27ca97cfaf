"""token_loss_: kernel and reference against torch's own cross-entropy in double."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.ops import token_loss_
from flamvid.ops.token_loss import _token_loss

BOTH = pytest.mark.parametrize("loss", [token_loss_, _token_loss._init_fn], ids=["op", "reference"])


def truth(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their sum, by torch."""
    wide = logits.double().clone().requires_grad_()
    losses = F.cross_entropy(wide, targets, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), wide)[0]


@BOTH
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 200),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    half=st.booleans(),
    seed=st.integers(0),
)
def test_losses_and_gradients(
    loss: object, rows: int, columns: int, spread: float, half: bool, seed: int
) -> None:
    torch.manual_seed(seed % 2**63)
    logits = spread * torch.randn(rows, columns) + 10 * torch.randn(rows, 1)
    logits = logits.bfloat16() if half else logits
    targets = torch.randint(0, columns, (rows,))
    want, slope = truth(logits, targets)
    got = loss(logits, targets)  # type: ignore[operator]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)
    close = 2**-8 if half else 1e-5
    torch.testing.assert_close(logits.double(), slope, atol=1e-6, rtol=close)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_column_of_minus_infinity_is_no_tokens(loss: object, dtype: torch.dtype) -> None:
    logits = torch.randn(3, 70, dtype=dtype)
    logits[:, 40:60] = float("-inf")
    want, _ = truth(logits[:, [*range(40), *range(60, 70)]], torch.tensor([2, 3, 45]))
    got = loss(logits, torch.tensor([2, 3, 65]))  # type: ignore[operator]
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)
    assert bool((logits[:, 40:60] == 0).all())


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(loss: object, bad: float) -> None:
    logits = torch.randn(2, 33)
    logits[1, 32] = bad
    assert loss(logits, torch.tensor([5, 5])).isnan().tolist() == [False, True]  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_go_by_float32(dtype: torch.dtype) -> None:
    logits, targets = torch.randn(4, 20).to(dtype), torch.tensor([0, 19, 3, 3])
    want, slope = truth(logits, targets)
    torch.testing.assert_close(token_loss_(logits, targets).double(), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits.double(), slope, atol=1e-3, rtol=1e-3)


def test_a_view_is_written_where_it_lies() -> None:
    table, targets = torch.randn(30, 6), torch.tensor([1, 29, 4])
    _, slope = truth(table[:, ::2].mT, targets)
    others = table[:, 1::2].clone()
    token_loss_(table[:, ::2].mT, targets)
    torch.testing.assert_close(table[:, ::2].mT.double(), slope, atol=1e-6, rtol=1e-5)
    assert torch.equal(table[:, 1::2], others)


def test_bad_input_is_named() -> None:
    logits, targets = torch.randn(3, 9), torch.tensor([0, 1, 2])
    for bad, complaint in (
        ((logits[0], targets), r"must be \[X,V\] and \[X\]"),
        ((logits, targets[:2]), r"must be \[X,V\] and \[X\]"),
        ((logits, targets.int()), "must be floating point and int64"),
        ((logits.long(), targets), "must be floating point and int64"),
    ):
        with pytest.raises(InputError, match=complaint):
            token_loss_(*bad)
    with pytest.raises((RuntimeError, IndexError)):
        token_loss_(logits, targets + 7)


def test_the_operation_holds_what_torch_asks_of_one() -> None:
    op = torch.ops.flamvid.token_loss_.default
    for dtype in (torch.float32, torch.bfloat16):
        given_ = (torch.randn(3, 40, dtype=dtype), torch.tensor([1, 0, 39]))
        torch.library.opcheck(op, given_)
