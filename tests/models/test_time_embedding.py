"""What tells one order of frames from another."""

from __future__ import annotations

import torch

from flamvid.models.resampler import PerceiverResampler, ResamplerConfig

SIZES = ResamplerConfig(features=24, width=64, depth=2, heads=4, head_width=16, latents=8, frames=8)


@torch.no_grad()
def test_a_fresh_resampler_hears_of_the_order_of_frames() -> None:
    """By a tenth of its latents or so; rows a fiftieth as large are lost beside features."""
    moved = 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        resampler = PerceiverResampler(SIZES).eval()
        features = torch.randn(1, 8, 9, 24)
        latents = resampler(features)
        moved += float((resampler(features.flip(1)) - latents).norm() / latents.norm()) / 4
    assert 0.08 < moved < 1
