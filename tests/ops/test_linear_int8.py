"""The int8 linear layer: kernel against reference, and what int8 does to weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.ops import GROUP, Int8, dequantise_int8, linear_int8, quantise_int8


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 9), st.integers(10, 70), st.integers(127, 130)),
    groups=st.integers(1, 20),
    outputs=st.integers(1, 40),
    seed=st.integers(0),
)
def test_it_is_the_linear_layer_of_the_widened_weights(
    rows: int, groups: int, outputs: int, seed: int
) -> None:
    torch.manual_seed(seed % 2**63)
    x = torch.randn(rows, groups * GROUP)
    w = quantise_int8(torch.randn(outputs, groups * GROUP))
    want = F.linear(x.double(), dequantise_int8(w).double()).float()
    torch.testing.assert_close(linear_int8(x, w), want, atol=1e-4, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 9), groups=st.integers(1, 4), seed=st.integers(0))
def test_four_bit_weights_stay_what_they_are(outputs: int, groups: int, seed: int) -> None:
    torch.manual_seed(seed % 2**63)
    # As GGUF's Q4_1 has them: 16 equal steps from the least to the largest of each group.
    steps = torch.randint(0, 16, (outputs, groups, GROUP))
    steps[..., 0], steps[..., 1] = 0, 15
    scale, least = torch.rand(2, outputs, groups, 1)
    weight = (steps * scale + least - 0.5).view(outputs, -1)
    back = dequantise_int8(quantise_int8(weight))
    torch.testing.assert_close(back, weight, atol=1e-6, rtol=1e-6)


def test_no_weight_moves_by_more_than_half_a_step() -> None:
    weight = torch.randn(50, 8 * GROUP) * torch.rand(50, 1)
    moved = (dequantise_int8(quantise_int8(weight)) - weight).abs().view(50, 8, GROUP)
    groups = weight.view(50, 8, GROUP)
    span = groups.amax(-1) - groups.amin(-1)
    assert (moved.amax(-1) <= span / 510 * 1.001 + 1e-7).all()
    flat = torch.full((3, GROUP), 0.7)
    torch.testing.assert_close(dequantise_int8(quantise_int8(flat)), flat)


def test_leading_dimensions_are_kept() -> None:
    w = quantise_int8(torch.randn(5, GROUP))
    x = torch.randn(2, 3, GROUP)
    assert linear_int8(x, w).shape == (2, 3, 5)
    torch.testing.assert_close(linear_int8(x.transpose(0, 1), w)[1, 0], linear_int8(x[0, 1], w))
    many = torch.randn(3, 11, GROUP)
    torch.testing.assert_close(
        linear_int8(many.transpose(0, 1), w)[7, 2], linear_int8(many[2, 7], w)
    )
    assert linear_int8(x[:0], w).shape == (0, 3, 5)


def test_it_is_an_operation_of_torch() -> None:
    w = quantise_int8(torch.randn(5, 2 * GROUP))
    torch.library.opcheck(torch.ops.flamvid.linear_int8.default, (torch.randn(3, 2 * GROUP), *w))
    torch.library.opcheck(torch.ops.flamvid.widen_int8.default, tuple(w))
    run = torch.compile(lambda x: linear_int8(x, w), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2 * GROUP)
    assert torch.equal(run(x), linear_int8(x, w))


def test_what_does_not_fit_is_refused() -> None:
    w = quantise_int8(torch.randn(5, 2 * GROUP))
    x = torch.randn(3, 2 * GROUP)
    for bad_x, bad in (
        (x[:, :GROUP], w),
        (x, w._replace(scales=w.scales[:, :1])),
        (x, w._replace(offsets=w.offsets[:4])),
        (x.double(), w),
        (x, w._replace(weight=w.weight.int())),
    ):
        with pytest.raises(InputError, match="must be"):
            linear_int8(bad_x, bad)
    with pytest.raises(InputError, match="40 wide; int8 needs a multiple of 32"):
        quantise_int8(torch.randn(5, 40))
    # Past the door, too, nothing is read that is not there.
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.flamvid.linear_int8(x, w.weight, w.scales[:2], w.offsets)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.flamvid.widen_int8(w.weight, w.scales[:2], w.offsets)


def test_int8_is_a_named_triple() -> None:
    assert Int8._fields == ("weight", "scales", "offsets")
