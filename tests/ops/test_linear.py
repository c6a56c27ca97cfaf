"""Rows, few or many, give what `F.linear` gives, gradients too."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.resampler import FeedForward
from flamvid.ops import HalfLinear, implementation, linear, linear_gelu

OPS = importlib.import_module("flamvid.ops.linear")


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8, 9, 24, 60, 300])
@pytest.mark.parametrize("sizes", [(24, 40), (40, 24), (48, 80), (528, 32)])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_as_torch_has_it(rows: int, sizes: tuple[int, int], biased: bool) -> None:
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
    torch.testing.assert_close(quick, theirs, atol=1e-4, rtol=1e-5)
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 30])
def test_memory_of_any_order(rows: int) -> None:
    x, weight = torch.randn(64, rows).T, torch.randn(64, 96).T[::2]
    torch.testing.assert_close(linear(x, weight), x @ weight.T, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("weight", "bias"), [((48,), None), ((32, 48), (1,)), ((32, 48), (1, 32))])
def test_what_else_torch_takes(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    x, w = torch.randn(30, 48), torch.randn(weight)
    b = torch.randn(bias) if bias else None
    assert torch.equal(linear(x, w, b), F.linear(x, w, b))


@torch.no_grad()
@pytest.mark.skipif(implementation("linear_many").name != "kernel", reason="flamvid._C is missing")
@pytest.mark.parametrize("gelu", [False, True])
def test_a_row_s_numbers_are_its_own(gelu: bool) -> None:
    """However many there are, and on however many threads."""
    x, weight, bias = torch.randn(600, 1040), torch.randn(160, 1040), torch.randn(160)
    many = torch.ops.flamvid.linear_many
    whole = many(x, weight, bias, gelu)
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(whole, F.gelu(plain) if gelu else plain, atol=2e-4, rtol=1e-5)
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3):
            torch.set_num_threads(torch_threads)
            for rows in (slice(0, 600), slice(0, 9), slice(100, 400), slice(591, 600)):
                assert torch.equal(many(x[rows], weight, bias, gelu), whole[rows])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(many(x, weight, None, False) + bias, many(x, weight, bias, False))


def test_rows_are_an_operation_of_torch() -> None:
    torch.library.opcheck(
        torch.ops.flamvid.linear_few.default, (torch.randn(3, 40), torch.randn(7, 40))
    )
    x, weight, bias = torch.randn(30, 48), torch.randn(32, 48), torch.randn(32)
    for args in ((x, weight, bias, True), (x, weight, None, False)):
        torch.library.opcheck(torch.ops.flamvid.linear_many.default, args)
    for bad in (
        (x, weight[:, :32], bias, True),
        (x, weight, bias[:16], True),
        (x, weight, bias[None], True),
        (x[None], weight, bias, True),
        (x, weight.half(), bias, False),
        (x[:, :40], weight[:, :40], bias, False),
        (x, weight[:24], bias[:24], False),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.flamvid.linear_many(*bad)
    with pytest.raises(RuntimeError):  # past the door nothing is read that is not there
        torch.ops.flamvid.linear_few(torch.randn(3, 40), torch.randn(7, 41))


def test_other_types_stay_torch_s_own() -> None:
    x, weight = torch.randn(3, 40, dtype=torch.bfloat16), torch.randn(7, 40, dtype=torch.bfloat16)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("rows", [0, 1, 9, 23, 24, 61])
@pytest.mark.parametrize("sizes", [(24, 40), (40, 24), (7, 13)])
@pytest.mark.parametrize("biased", [False, True])
def test_gelu_of_it(rows: int, sizes: tuple[int, int], biased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, rows, sizes[0], requires_grad=True)
    weight = torch.randn(sizes[1], sizes[0], requires_grad=True)
    bias = torch.randn(sizes[1]) if biased else None
    ours, theirs = linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias))
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        quick = linear_gelu(x, weight, bias)
    torch.testing.assert_close(quick, theirs, atol=2e-5, rtol=1e-5)
    for mine, wanted in zip(
        torch.autograd.grad(ours.square().sum(), (x, weight)),
        torch.autograd.grad(theirs.square().sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each product of many rows is asked for with its GELU, on any processor."""
    asked: list[bool] = []

    def many(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        asked.append(gelu)
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out

    monkeypatch.setattr(OPS, "_many_is_compiled", lambda: True)
    monkeypatch.setattr(torch.ops.flamvid, "linear_many", many)
    return asked


def test_many_rows_have_their_gelu_with_the_product(asked: list[bool]) -> None:
    x, ffw = torch.randn(30, 16), FeedForward(16, 4, "gelu")
    want = ffw(x)
    assert not asked  # gradients are asked for
    with torch.no_grad():
        torch.testing.assert_close(ffw(x), want)
        assert asked == [True, False]
        ffw(x[:8])
        assert asked == [True, False]
        with HalfLinear():
            ffw(x)
        assert asked == [True, False]
        FeedForward(16, 4, "relu")(x)
        assert asked == [True, False, False, False]


@pytest.mark.parametrize("at", [1, 2])
@torch.no_grad()
def test_who_listens_hears_of_both(asked: list[bool], at: int) -> None:
    x, ffw = torch.randn(30, 16), FeedForward(16, 4, "gelu")
    heard: list[Tensor] = []

    def listen(_: nn.Module, __: Any, out: Tensor) -> None:
        heard.append(out)

    ffw[at].register_forward_hook(listen)
    want = F.linear(ffw[0](x), ffw[1].weight)
    ffw(x)
    assert len(heard) == 1
    torch.testing.assert_close(heard[0], want if at == 1 else F.gelu(want))
    assert asked == [False, False]


@torch.no_grad()
def test_gelu_s_other_formula_is_not_taken_for_it(asked: list[bool]) -> None:
    x, ffw = torch.randn(30, 16), FeedForward(16, 4, "gelu")
    ffw[2] = nn.GELU("tanh")
    want = ffw[3](F.gelu(ffw[1](ffw[0](x)), approximate="tanh"))
    assert torch.equal(ffw(x), want)
    assert not any(asked)


def test_some_parts_of_a_feed_forward_are_a_sequence() -> None:
    x, ffw = torch.randn(5, 16), FeedForward(16, 4, "gelu")
    assert torch.equal(ffw[2:](ffw[:2](x)), ffw[3](ffw[2](ffw[1](ffw[0](x)))))
    assert ffw[-1] is list(ffw)[3]
    assert len(ffw[1:3]) == 2
