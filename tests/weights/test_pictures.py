"""Pictures as an encoder's authors prepare them: against their processors' own pixels."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm.data
import torch
from torchvision.transforms.v2 import functional as F
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    DINOv3ViTImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
)

from flamvid.errors import ConfigError
from flamvid.models.vision import VisionConfig
from flamvid.video.clip_sampling import transforms
from flamvid.video.transform import FrameTransform
from flamvid.weights.pictures import as_its_authors

SIZES = [(97, 140), (361, 224), (256, 256), (224, 224), (300, 410)]
DINOV2 = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip": (CLIPImageProcessor, {"size": {"shortest_edge": 56}, "crop_size": 56}),
    "siglip": (SiglipImageProcessor, {"size": {"height": 48, "width": 48}}),
    "dinov2": (BitImageProcessor, {**DINOV2, "image_mean": [0.485, 0.456, 0.406]}),
    "dinov3": (DINOv3ViTImageProcessor, {"size": {"height": 64, "width": 64}}),
}
FAMILY = {"clip": "clip", "siglip": "siglip", "dinov2": "dino", "dinov3": "dino"}


def smooth(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    return F.gaussian_blur(pixels, [9, 9])


def prepared(look: VisionConfig, pixels: torch.Tensor) -> torch.Tensor:
    side = (look.size, look.size)
    finer = (look.resize, look.interpolation, look.shorter, look.antialias)
    return FrameTransform(side, look.mean, look.std, *finer)(pixels)


def close(ours: torch.Tensor, theirs: torch.Tensor, std: tuple[float, ...]) -> None:
    """Within what rounding to 8 bits, before or after resizing, makes of it."""
    assert ours.shape == theirs.shape
    level = 1 / 255 / min(std)
    assert (ours - theirs).abs().max() < 2.1 * level
    assert (ours - theirs).abs().mean() < 0.4 * level


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    kind, settings = PROCESSORS[name]
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)
    look = as_its_authors(VisionConfig(encoder=f"{FAMILY[name]}:{tmp_path}", size=0))
    pixels = smooth(*size)
    theirs = processor(pixels[0], return_tensors="pt")["pixel_values"]
    close(prepared(look, pixels), theirs, look.std)


def test_siglip2_sees_a_square_of_as_many_patches(tmp_path: Path) -> None:
    processor = Siglip2ImageProcessor(patch_size=16, max_num_patches=25)
    processor.save_pretrained(tmp_path)
    look = as_its_authors(VisionConfig(encoder=f"siglip:{tmp_path}", size=0))
    assert (look.size, look.resize, look.interpolation) == (80, "squash", "bilinear")
    pixels = smooth(200, 200)
    patches = processor(pixels[0], return_tensors="pt")["pixel_values"]  # 1 x 25 x 16*16*3
    theirs = patches.view(1, 5, 5, 16, 16, 3).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    close(prepared(look, pixels), theirs, look.std)


@pytest.mark.parametrize("name", ["x3d_xs", "x3d_m", "slowfast_r50", "mvit_base_16x4"])
@pytest.mark.parametrize("size", [(240, 320), (300, 200), (256, 256), (720, 404)])
def test_clips_are_prepared_as_pytorchvideo_does(name: str, size: tuple[int, int]) -> None:
    look = as_its_authors(VisionConfig(encoder=f"pytorchvideo:{name}", size=0))
    pixels = smooth(*size).expand(2, -1, -1, -1)
    theirs: Any = transforms()
    scaled = theirs.ShortSideScale(look.shorter)(pixels.transpose(0, 1) / 255)
    wanted = F.center_crop(scaled, [look.size, look.size]).transpose(0, 1)
    close(prepared(look, pixels), (wanted - 0.45) / 0.225, look.std)


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite2", "vit_base_patch16_224"])
def test_timm_models_see_what_timm_shows_them(name: str) -> None:
    look = as_its_authors(VisionConfig(encoder=f"timm:{name}", size=0))
    own = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**own)
    pixels = smooth(300, 410)
    wanted = theirs(F.to_pil_image(pixels[0]))[None]
    close(prepared(look, pixels), wanted, look.std)


def test_what_is_told_stays_as_told() -> None:
    look = VisionConfig(encoder="dino:nowhere", size=99)
    assert as_its_authors(look) is look


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (None, "FileNotFoundError"),
        ({"size": {"height": 48, "width": 64}}, "no square"),
        ({"size": 48, "resample": 0, "do_center_crop": True, "crop_size": 48}, "KeyError: 0"),
        ({"size": 48, "image_mean": [0.5]}, "KeyError: 'height'"),
        ([], "say it in the model's"),
    ],
)
def test_what_a_processor_does_not_say_is_asked_for(table: Any, told: str, tmp_path: Path) -> None:
    usual = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    if table is not None:
        whole = {**usual, **table} if isinstance(table, dict) else table
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match=told):
        as_its_authors(VisionConfig(encoder=f"siglip:{tmp_path}", size=0))


def test_shorter_belongs_to_a_crop() -> None:
    half = (0.5, 0.5, 0.5)
    for resize, shorter in (("squash", 64), ("crop", 47)):
        with pytest.raises(ConfigError, match=f"shorter is {shorter}"):
            FrameTransform((48, 48), half, half, resize, shorter=shorter)


def test_features_are_known_by_how_they_came_about() -> None:
    plain = VisionConfig(encoder="clip:x")
    looks = [
        plain,
        *(
            VisionConfig(**{**asdict(plain), **change})
            for change in (
                {"resize": "crop"},
                {"shorter": 256},
                {"interpolation": "bilinear"},
                {"antialias": False},
                {"class_token": True},
            )
        ),
    ]
    assert len({look.features for look in looks}) == len(looks)
    assert math.isclose(plain.mean[0], 0.5)
