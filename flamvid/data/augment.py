"""The frames of a clip at one size, and changed all alike (Flamingo, appendix B.1).

Legend: T frames.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from flamvid.data.corpus import CorpusConfig

__all__ = ["fit"]


def fit(frames: Tensor, config: CorpusConfig, rng: random.Random | None = None) -> Tensor:
    """uint8 [T,3,H,W] to [T,3,size,size] as `config` says; `rng` None leaves colours and sides."""
    from torchvision.transforms.v2 import functional as F  # half a second

    H, W = frames.shape[-2:]
    size, to = config.size, (config.size, config.size)
    if config.resize != "squash":
        ratio = size / (max(H, W) if config.resize == "pad" else min(H, W))
        to = (max(1, round(H * ratio)), max(1, round(W * ratio)))
    if to != (H, W):
        frames = F.resize(frames, list(to), F.InterpolationMode.BICUBIC, antialias=True)
    if config.resize == "crop":
        frames = F.center_crop(frames, [size, size])
    if rng:
        frames = _changed(frames, rng, config.flip, config.jitter)
    return _padded(frames, size, config.fill)


def _changed(frames: Tensor, rng: random.Random, flip: float, jitter: float) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    if rng.random() < flip:
        frames = frames.flip(-1)
    if jitter > 0:
        # As one tall picture, or contrast would be about each frame's own mean, and flicker.
        T, _, H, W = frames.shape
        tall = frames.transpose(0, 1).reshape(3, T * H, W)
        for change in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
            tall = change(tall, 1 + jitter * rng.uniform(-1, 1))
        tall = F.adjust_hue(tall, rng.uniform(-1, 1) * jitter / 4)
        frames = tall.reshape(3, T, H, W).transpose(0, 1)
    return frames


def _padded(frames: Tensor, size: int, fill: tuple[float, float, float]) -> Tensor:
    T, _, H, W = frames.shape
    if (size, size) == (H, W):
        return frames.contiguous()
    colour = (torch.tensor(fill) * 255).round().to(torch.uint8)
    out = colour[:, None, None].repeat(T, 1, size, size)
    top, left = (size - H) // 2, (size - W) // 2
    out[..., top : top + H, left : left + W] = frames
    return out
