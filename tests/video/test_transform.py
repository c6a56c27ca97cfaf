from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from flamvid.errors import ConfigError
from flamvid.video.transform import FrameTransform

HALF = (0.5, 0.5, 0.5)


def test_squash_equals_the_definition() -> None:
    pixels = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    resized = F.resize(pixels, [26, 26], InterpolationMode.BICUBIC, antialias=True)
    expected = (resized.float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(FrameTransform((26, 26), HALF, HALF)(pixels), expected)


def test_crop_takes_the_middle_and_pad_keeps_all() -> None:
    pixels = torch.zeros(1, 3, 20, 60, dtype=torch.uint8)
    pixels[..., 20:40] = 255  # white in the middle third
    crop = FrameTransform((10, 10), HALF, HALF, "crop")(pixels)
    pad = FrameTransform((12, 12), HALF, HALF, "pad")(pixels)
    assert crop.shape == (1, 3, 10, 10)
    assert crop.mean() > 0.9
    assert pad.shape == (1, 3, 12, 12)
    assert (pad[..., :4, :] == -1).all()  # bars of black above
    assert pad[..., 6, 5:7].min() > 0.9


def test_what_has_the_size_is_not_resampled() -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    out = FrameTransform((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(pixels)
    torch.testing.assert_close(out, pixels / 255)


def test_unknown_resize() -> None:
    with pytest.raises(ConfigError, match="squash, crop or pad"):
        FrameTransform((8, 8), HALF, HALF, "stretch")
