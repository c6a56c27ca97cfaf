"""Products in bfloat16 within float32: near the true ones, and trained as they are."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.int8 import Int8Linear
from flamvid.models.mosaic import MosaicConfig, MosaicMlp
from flamvid.models.resampler import ACTIVATIONS, FeedForward, ResamplerBlock, ResamplerConfig
from flamvid.ops import HalfLinear, halved, quantise_int8
from flamvid.train.precision import halve_frozen


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


def test_what_is_halved_on_the_way_is_what_is_given_to_a_linear_layer() -> None:
    x, y = torch.randn(3, 8), torch.randn(3, 8).double()
    assert halved(x) is x
    with HalfLinear():
        assert torch.equal(halved(x), x.bfloat16())
        assert halved(y) is y
        assert F.linear(halved(x), torch.randn(4, 8)).dtype == torch.bfloat16
    assert halved(x) is x


def learnt(layer: nn.Module, x: Tensor, *more: Tensor) -> list[Tensor]:
    """What a layer gives within HalfLinear, and all gradients."""
    x = x.clone().requires_grad_()
    with HalfLinear():
        out = layer(x, *more)
    assert out.dtype == torch.float32
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad(out, [x, *layer.parameters()], slope)]


@pytest.mark.parametrize("name", [*ACTIVATIONS, "mlp"])
def test_a_feed_forward_stays_in_bfloat16_to_the_same_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mlp = name == "mlp"
    layer = MosaicMlp(MosaicConfig(d_model=32)) if mlp else FeedForward(32, 4, name)
    x = torch.randn(5, 7, 32)
    got = learnt(layer, x)
    for module in ("resampler", "mosaic"):
        monkeypatch.setattr(f"flamvid.models.{module}.halved", lambda x, *_: x)
    for mine, plain in zip(got, learnt(layer, x), strict=True):
        assert torch.equal(mine, plain)


class Adapted(nn.Module):
    """A layer and what an adapter adds to it, in the type of the layer, as peft has it."""

    def __init__(self, layer: nn.Module, more: float) -> None:
        super().__init__()
        self.layer, self.more = layer, more

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return (out + self.more).to(out.dtype)


def test_what_an_adapter_adds_is_not_rounded_away() -> None:
    torch.manual_seed(0)
    mlp, x = MosaicMlp(MosaicConfig(d_model=32)), torch.randn(5, 32)
    with HalfLinear(), torch.no_grad():
        before = mlp(x)
        mlp.mlp_down = Adapted(mlp.mlp_down, 1e-4)
        added = mlp(x) - before
    torch.testing.assert_close(added, torch.full_like(added, 1e-4), atol=1e-6, rtol=0)


def test_eight_bits_want_float32() -> None:
    feed = FeedForward(32, 2)
    feed[1] = Int8Linear(quantise_int8(feed[1].weight))
    with HalfLinear(), torch.no_grad():
        assert feed(torch.randn(3, 32)).dtype == torch.float32


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_resamplers_block_stays_in_bfloat16_to_nearly_the_same_numbers(
    qk_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sizes = ResamplerConfig(features=32, width=32, heads=2, head_width=16, qk_norm=qk_norm)
    block, media = ResamplerBlock(sizes), torch.randn(3, 140, 32)
    x = torch.randn(3, 6, 32)
    kinds = []
    module = importlib.import_module("flamvid.models.resampler")
    attention = module.attention
    monkeypatch.setattr(module, "attention", lambda *x: kinds.append(x[0].dtype) or attention(*x))
    got = learnt(block, x, media)
    monkeypatch.setattr(module, "halved", lambda x, *_: x)
    for mine, plain in zip(got, learnt(block, x, media), strict=True):
        error = float((mine - plain).detach().norm() / plain.detach().norm())
        assert error <= (0 if qk_norm else 5e-3)
    assert kinds == [torch.float32 if qk_norm else torch.bfloat16, torch.float32]
