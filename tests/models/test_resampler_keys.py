"""Kept keys give the latents that the resampler gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flamvid.models.resampler import PerceiverResampler, ResamplerBlock, ResamplerConfig
from flamvid.models.resampler_keys import KeyReader


def resampler(**changes: Any) -> PerceiverResampler:
    torch.manual_seed(0)
    sizes = {"features": 24, "width": 32, "heads": 4, "head_width": 8, "latents": 5, "frames": 4}
    made = PerceiverResampler(ResamplerConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for block in made.blocks:
            if isinstance(block, ResamplerBlock):  # gains and biases as training leaves them
                nn.init.normal_(block.norm_media.weight, 1.0, 0.3)
                nn.init.normal_(block.norm_media.bias, 0.0, 0.3)
        if made.time is not None:
            nn.init.normal_(made.time.weight, std=0.5)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frames": 0},
        {"media": 3, "qk_norm": True},
        {"project": False, "features": 32, "out_width": 12, "depth": 3},
        {"activation": "gelu"},
    ],
)
@pytest.mark.parametrize("frames", [1, 3, 4, 9])
def test_latents_are_those_of_the_resampler(changes: dict[str, Any], frames: int) -> None:
    made = resampler(**changes)
    features = torch.randn(frames, 7, made.config.features)
    reader = KeyReader(made)
    keys = [reader.keys(frame) for frame in features]
    with torch.inference_mode():
        assert torch.allclose(reader.latents(keys), made(features[None]), atol=2e-5)
    assert all(k.nbytes == reader.nbytes(7, torch.float32) for k in keys)


def test_a_frame_is_read_in_whichever_slot_it_is() -> None:
    made = resampler()
    features = torch.randn(6, 7, 24)
    reader = KeyReader(made)
    keys = [reader.keys(frame) for frame in features]
    with torch.inference_mode():
        for first in range(3):
            slid = reader.latents(keys[first : first + 4])
            assert torch.allclose(slid, made(features[None, first : first + 4]), atol=2e-5)


def test_frames_may_have_patches_of_their_own_number() -> None:
    made = resampler(frames=0)  # then a frame's patches are a set like any other
    features = torch.randn(1, 9, 24)
    reader = KeyReader(made)
    parts = [reader.keys(part) for part in features[0].split([4, 2, 3])]
    with torch.inference_mode():
        assert torch.allclose(reader.latents(parts), made(features[None]), atol=2e-5)


def test_the_ablations_have_no_keys() -> None:
    assert KeyReader.serves(resampler())
    assert not KeyReader.serves(resampler(kind="mlp"))
    assert not KeyReader.serves(nn.Identity())
