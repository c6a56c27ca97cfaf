from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from flamvid.errors import ConfigError
from flamvid.models.build import read_model_config
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
    with pytest.raises(ConfigError, match="squash, crop, crop_floor or pad"):
        FrameTransform((8, 8), HALF, HALF, "stretch")


@pytest.mark.parametrize("size", [(97, 140), (361, 224), (224, 361), (300, 300), (64, 50)])
@pytest.mark.parametrize("model", ["openflamingo-3b", "idefics-9b"])
def test_pictures_are_prepared_as_the_released_models_were_trained(
    size: tuple[int, int], model: str
) -> None:
    torch.manual_seed(0)
    ours, theirs = _processors(model)
    smooth = F.gaussian_blur(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), [9, 9])
    out, wanted = ours(smooth)[0], theirs(smooth[0])
    assert out.shape == wanted.shape == (3, 224, 224)
    # Levels are 0.015 apart; Pillow rounds between its two passes as well.
    assert (out - wanted).abs().max() < 0.035
    assert (out - wanted).abs().mean() < 0.001


def _processors(model: str) -> tuple[FrameTransform, Callable[[torch.Tensor], torch.Tensor]]:
    """Ours, and what its authors used: OpenFlamingo open_clip's transform, IDEFICS its own."""
    look = read_model_config(model).vision
    ours = FrameTransform((look.size, look.size), look.mean, look.std, look.resize)
    bicubic = InterpolationMode.BICUBIC
    if look.resize == "crop":
        first = [transforms.Resize(224, bicubic), transforms.CenterCrop(224)]
    else:
        first = [transforms.Resize((224, 224), bicubic)]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    return ours, transforms.Compose([transforms.ToPILImage(), *first, *normalise])
