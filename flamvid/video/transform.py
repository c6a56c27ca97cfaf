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

    resize: "squash" changes the aspect ratio, "crop" takes the middle once the shorter side is
    `shorter` long (0: as long as what is taken), "pad" adds black bars. "crop_floor" is Hugging
    Face's crop: a middle between two pixels is the first, where torchvision's is the even one.
    antialias: smooth what is shrunk.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = "squash"
    interpolation: str = "bicubic"
    shorter: int = 0
    antialias: bool = True

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop", "crop_floor", "pad"):
            raise ConfigError(f"resize is {self.resize!r}; must be squash, crop, crop_floor or pad")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ConfigError(f"interpolation is {self.interpolation!r}; bicubic or bilinear")
        if self.shorter and (not self._crops or self.shorter < max(self.size)):
            raise ConfigError(
                f"shorter is {self.shorter}; must be at least the size, {max(self.size)}, and "
                "resize must be crop"
            )

    @property
    def decode_size(self) -> tuple[int, int] | None:
        """What frames can be resized to while they are decoded, without a crop to come."""
        squashes = self.resize == "squash" and self.interpolation == "bicubic" and self.antialias
        return self.size if squashes else None

    def __call__(self, pixels_T3HW: Tensor) -> Tensor:
        return self.normalised(self.resized(pixels_T3HW))

    def normalised(self, pixels_T3hw: Tensor) -> Tensor:
        """Float32 [T,3,h,w] of frames that have the encoder's size."""
        mean, std = (
            torch.tensor(x, device=pixels_T3hw.device)[:, None, None] for x in (self.mean, self.std)
        )
        return (pixels_T3hw.float() / 255 - mean) / std

    @property
    def _crops(self) -> bool:
        return self.resize.startswith("crop")

    def resized(self, pixels: Tensor) -> Tensor:
        """The frames at the encoder's size, uint8 [T,3,h,w]."""
        (height, width), (H, W) = self.size, pixels.shape[-2:]
        if (height, width) == (H, W) and self.shorter in (0, min(H, W)):
            return pixels
        # Half a second, which frames that were decoded to size do without.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        to = (height, width)
        if self.resize != "squash":
            ratios = height / H, width / W
            ratio = max(ratios) if self._crops else min(ratios)
            if self.shorter:
                ratio = self.shorter / min(H, W)
            # CLIP's crop drops the fraction of a pixel, as torchvision's Resize does.
            whole = _floor if self._crops else round
            to = (max(1, whole(H * ratio)), max(1, whole(W * ratio)))
        mode = InterpolationMode(self.interpolation)
        resized: Tensor = F.resize(pixels, list(to), mode, antialias=self.antialias)
        if self.resize == "crop":
            resized = F.center_crop(resized, [height, width])
        elif self.resize == "crop_floor":
            resized = F.crop(resized, (to[0] - height) // 2, (to[1] - width) // 2, height, width)
        elif self.resize == "pad":
            left, top = (width - to[1]) // 2, (height - to[0]) // 2
            resized = F.pad(resized, [left, top, width - to[1] - left, height - to[0] - top])
        return resized


def _floor(size: float) -> int:
    return int(size + 1e-6)  # 224 / 361 * 361 may fall short of 224
