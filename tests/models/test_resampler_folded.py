"""Where media learn nothing, a block takes its norm's gain and bias into the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from flamvid.models.resampler import PerceiverResampler, ResamplerBlock, ResamplerConfig


@pytest.mark.parametrize("qk_norm", [False, True])
def test_values_and_gradients_are_those_of_the_plain_formula(qk_norm: bool) -> None:
    torch.manual_seed(0)
    sizes = ResamplerConfig(
        features=24, width=24, depth=2, heads=3, head_width=8, latents=5, frames=0, project=False,
        qk_norm=qk_norm,
    )  # fmt: skip
    resampler = PerceiverResampler(sizes).double()
    for parameter in resampler.parameters():  # gains and biases that matter
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    features = 2 + 3 * torch.randn(3, 2, 7, 24, dtype=torch.float64)
    slope = torch.randn(3, 5, 24, dtype=torch.float64)
    folded = []
    own = ResamplerBlock._folded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResamplerBlock, "_folded", lambda *x: folded.append(0) or own(*x))
        got = resampler(features)
        mine = torch.autograd.grad(got, list(resampler.parameters()), slope)
        assert len(folded) == 2
        # Media that ask for a gradient take the plain formula.
        want = resampler(features.requires_grad_())
        assert len(folded) == 2
    theirs = torch.autograd.grad(want, list(resampler.parameters()), slope)
    torch.testing.assert_close(got, want)
    for mine_, theirs_ in zip(mine, theirs, strict=True):
        torch.testing.assert_close(mine_, theirs_)


@pytest.mark.parametrize("grad", [False, True])
def test_a_resampler_is_one_graph(grad: bool) -> None:
    torch.manual_seed(0)
    sizes = ResamplerConfig(
        features=16, width=16, depth=1, heads=2, head_width=8, latents=4, frames=0, project=False
    )
    resampler, features = PerceiverResampler(sizes), torch.randn(2, 3, 50, 16)
    run = torch.compile(resampler, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        got, want = run(features), resampler(features)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    if grad:
        learnt = list(resampler.parameters())
        mine, theirs = (torch.autograd.grad(x.square().sum(), learnt) for x in (got, want))
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_a_layer_that_is_not_what_it_seems_is_called() -> None:
    torch.manual_seed(0)
    sizes = ResamplerConfig(features=16, width=16, heads=2, head_width=8)
    media, x = torch.randn(2, 15, 16), torch.randn(2, 4, 16)
    folded = []
    own = ResamplerBlock._folded

    def rows_seen(change: Callable[[ResamplerBlock], object]) -> int:
        """How many keys the layer behind `to_kv` was asked for."""
        block, seen = ResamplerBlock(sizes), []
        change(block)
        block.to_kv.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
        block(x, media)
        return sum(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResamplerBlock, "_folded", lambda *x: folded.append(0) or own(*x))
        assert rows_seen(lambda block: None) == 19  # somebody listens
        assert rows_seen(lambda block: setattr(block, "to_kv", nn.Sequential(block.to_kv))) == 19
        assert rows_seen(lambda block: setattr(block, "norm_media", nn.Identity())) == 19
        ResamplerBlock(sizes).requires_grad_(False)(x, media)  # nothing is learnt
        assert not folded
        ResamplerBlock(sizes)(x, media)
        assert folded
