"""Products in bfloat16 within float32: near the true ones, and trained as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from flamvid.train.precision import HalfLinear, halve_frozen


def test_products_are_bfloat16_and_results_float32() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 32), torch.randn(16, 32), torch.randn(16)
    exact = F.linear(x, weight, bias)
    with HalfLinear():
        half = F.linear(x, weight, bias)
        unbiased = F.linear(x, weight)
    assert half.dtype == torch.float32
    assert torch.equal(half, F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).float())
    assert torch.equal(unbiased, F.linear(x.bfloat16(), weight.bfloat16()).float())
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, atol=0.2, rtol=0.02)


def test_gradients_reach_trained_weights_and_see_their_changes() -> None:
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(2, 8, requires_grad=True)
    with HalfLinear():
        before = layer(x)
        before.sum().backward()
        with torch.no_grad():
            layer.weight.add_(1)
        after = layer(x)
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(4, 8), atol=0.05, rtol=0)
    torch.testing.assert_close(
        after - before, x.sum(1, keepdim=True).expand(2, 4), atol=0.1, rtol=0
    )


def test_other_types_and_outside_nothing_changes() -> None:
    x, weight = torch.randn(2, 8).double(), torch.randn(4, 8).double()
    with HalfLinear():
        assert torch.equal(F.linear(x, weight), x @ weight.T)
    assert torch.equal(F.linear(x.float(), weight.float()), x.float() @ weight.float().T)


def test_frozen_weights_in_bfloat16_alone_change_nothing() -> None:
    layers = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    layers[0].requires_grad_(False)
    x = torch.randn(3, 8)
    with HalfLinear():
        before = layers(x)
    halve_frozen(layers)
    assert [layer.weight.dtype for layer in layers] == [torch.bfloat16, torch.float32]
    with HalfLinear():
        assert torch.equal(layers(x), before)
