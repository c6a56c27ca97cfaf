"""Frames to the vision encoder's input, by torchvision's v2 transforms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flamvid.errors import ConfigError

__all__ = ["FrameTransform"]


@dataclass(frozen=True, slots=True)
class FrameTransform:
    """uint8 [T,3,H,W] to normalised float32 [T,3,h,w].

    resize: "squash" changes the aspect ratio, "crop" takes the middle of the shorter side's
    square, "pad" adds black bars.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "squash"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop", "pad"):
            raise ConfigError(f"resize is {self.resize!r}; must be squash, crop or pad")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ConfigError(f"interpolation is {self.interpolation!r}; bicubic or bilinear")

    def __call__(self, pixels_T3HW: Tensor) -> Tensor:
        resized = self.resized(pixels_T3HW)
        mean, std = (
            torch.tensor(x, device=resized.device)[:, None, None] for x in (self.mean, self.std)
        )
        return (resized.float() / 255 - mean) / std

    def resized(self, pixels: Tensor) -> Tensor:
        """uint8 [T,3,h,w]: what a call would normalise. Those that have the size already stay."""
        (height, width), (H, W) = self.size, pixels.shape[-2:]
        if (height, width) == (H, W):
            return pixels
        # Half a second, which frames that were decoded to size do without.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        to = (height, width)
        if self.resize != "squash":
            ratios = height / H, width / W
            ratio = max(ratios) if self.resize == "crop" else min(ratios)
            # CLIP's crop drops the fraction of a pixel, as torchvision's Resize does.
            whole = _floor if self.resize == "crop" else round
            to = (max(1, whole(H * ratio)), max(1, whole(W * ratio)))
        mode = InterpolationMode(self.interpolation)
        resized: Tensor = F.resize(pixels, list(to), mode, antialias=True)
        if self.resize == "crop":
            resized = F.center_crop(resized, [height, width])
        elif self.resize == "pad":
            left, top = (width - to[1]) // 2, (height - to[0]) // 2
            resized = F.pad(resized, [left, top, width - to[1] - left, height - to[0] - top])
        return resized


def _floor(size: float) -> int:
    return int(size + 1e-6)  # 224 / 361 * 361 may fall short of 224
