"""Vision encoders against what their libraries and OpenFlamingo's own code say."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file

from flamvid.errors import ConfigError
from flamvid.models.transformers_encoder import TransformersEncoder
from flamvid.models.vision import VisionConfig, build_vision
from tests.conftest import SHARED


@pytest.mark.needs_shared
@pytest.mark.parametrize("host", ["neox", "llama", "mpt", "mosaic"])
@torch.no_grad()
def test_clip_features_are_those_that_openflamingo_reads(host: str) -> None:
    folder = SHARED / "parity" / host
    cases = load_file(folder / "cases.safetensors")
    encoder = build_vision(VisionConfig(encoder=f"clip:{folder / 'clip'}"), str(folder / "clip"))
    assert isinstance(encoder, TransformersEncoder)
    pixels, expected = cases["resampler.pixels"], cases["resampler.features"]
    features = encoder(pixels.flatten(0, -4))
    assert features.shape[-1] == encoder.width
    torch.testing.assert_close(features, expected.view_as(features), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet", "test_mambaout"])
@torch.no_grad()
def test_any_timm_model_gives_patches(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    torch.manual_seed(0)
    encoder = build_vision(VisionConfig(encoder=f"timm:{name}"))
    size = encoder.model.default_cfg["input_size"][-1]
    pictures = torch.randn(2, 3, size, size)
    features = encoder(pictures)
    assert features.ndim == 3
    assert features.shape[0] == 2
    assert features.shape[2] == encoder.width
    assert not any(p.requires_grad for p in encoder.parameters())
    if name == "test_resnet":  # the mean of the patches is what the classifier sees
        pooled = encoder.model.forward_head(encoder.model.forward_features(pictures), True)
        torch.testing.assert_close(features.mean(1), pooled, atol=1e-5, rtol=1e-5)


def test_a_name_that_timm_does_not_know() -> None:
    with pytest.raises(ConfigError, match="no model 'resnet5000'"):
        build_vision(VisionConfig(encoder="timm:resnet5000"))
    with pytest.raises(ConfigError, match="must be timm:NAME"):
        VisionConfig(encoder="resnet50")
