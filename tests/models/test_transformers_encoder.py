"""SigLIP and DINO towers against transformers' own outputs, on random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
    Siglip2ImageProcessor,
    SiglipConfig,
    SiglipModel,
)

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.build import read_model_config, skeleton
from flamvid.models.transformers_encoder import TransformersEncoder
from flamvid.models.vision import VisionConfig, build_vision

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
# model_type: the family, what is set besides, tokens of the whole picture, and features' width
TOWERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "clip_vision_model": ("clip", SMALL, 1, 32),
    "siglip_vision_model": ("siglip", SMALL, 0, 32),
    "dinov2": ("dino", SMALL, 1, 32),
    "dinov2_with_registers": ("dino", {**SMALL, "num_register_tokens": 3}, 4, 32),
    "dinov3_vit": ("dino", {**SMALL, "num_register_tokens": 2}, 3, 32),
    "dinov3_convnext": ("dino", {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]}, 1, 24),
}


def random_tower(model_type: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A tower whose every tensor is drawn at random, so that none is without effect."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.mark.parametrize("model_type", TOWERS)
@torch.no_grad()
def test_features_are_the_towers_own_hidden_states(model_type: str, tmp_path: Path) -> None:
    family, settings, first, width = TOWERS[model_type]
    theirs = random_tower(model_type, settings)
    theirs.save_pretrained(tmp_path)
    encoder = build_vision(VisionConfig(encoder=f"{family}:{tmp_path}"))
    assert isinstance(encoder, TransformersEncoder)
    assert encoder.width == width
    assert not any(p.requires_grad for p in encoder.parameters())

    pictures = torch.randn(2, 3, 32, 32)
    expected = theirs(pixel_values=pictures).last_hidden_state
    grid = 1 if model_type == "dinov3_convnext" else 16
    assert expected.shape[1] == first + grid
    torch.testing.assert_close(encoder(pictures), expected[:, first:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in TOWERS if name != "dinov3_convnext"])
@torch.no_grad()
def test_positions_are_interpolated_for_other_sizes(model_type: str, tmp_path: Path) -> None:
    family, settings, first, _ = TOWERS[model_type]
    theirs = random_tower(model_type, settings)
    theirs.save_pretrained(tmp_path)
    encoder = build_vision(VisionConfig(encoder=f"{family}:{tmp_path}", size=48))
    pictures = torch.randn(1, 3, 48, 48)
    features = encoder(pictures)
    assert features.shape[1] == 36
    asked = {} if family == "dino" else {"interpolate_pos_encoding": True}
    expected = theirs(pixel_values=pictures, **asked).last_hidden_state[:, first:]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [32, 48])
@torch.no_grad()
def test_siglip2_reads_what_its_processor_makes(side: int, tmp_path: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "image_size"}
    theirs = random_tower("siglip2_vision_model", {**settings, "num_patches": 16})
    theirs.save_pretrained(tmp_path)
    encoder = build_vision(VisionConfig(encoder=f"siglip:{tmp_path}"))

    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=(side // 8) ** 2)
    inputs = processor(list(pixels), return_tensors="pt")
    features = encoder((pixels / 255 - 0.5) / 0.5)
    expected = theirs(**inputs).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_vision_tower_of_a_model_with_two(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
    config = SiglipConfig(text_config=text, vision_config=SMALL)
    theirs = SiglipModel(config).eval()
    theirs.save_pretrained(tmp_path)
    encoder = build_vision(VisionConfig(encoder=f"siglip:{tmp_path}"))
    pictures = torch.randn(1, 3, 32, 32)
    expected = theirs.vision_model(pixel_values=pictures).last_hidden_state
    torch.testing.assert_close(encoder(pictures), expected, atol=1e-5, rtol=1e-5)
    # The pooling behind the features is left out.
    assert not any("head" in name for name, _ in encoder.named_parameters())


def test_a_folder_of_another_family_is_told(tmp_path: Path) -> None:
    random_tower("dinov2", SMALL).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="siglip encoder can't be a 'dinov2'"):
        build_vision(VisionConfig(encoder=f"siglip:{tmp_path}"))
    with pytest.raises(WeightsError, match=r"no config\.json"):
        build_vision(VisionConfig(encoder=f"dino:{tmp_path / 'nowhere'}"))


def test_a_folder_that_lacks_a_tensor_is_told(tmp_path: Path) -> None:
    tower = random_tower("dinov2", SMALL)
    tensors = dict(tower.state_dict())
    del tensors["layernorm.weight"]
    tower.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(WeightsError, match=r"lacks \[layernorm\.weight\] .*dino vision encoder"):
        build_vision(VisionConfig(encoder=f"dino:{tmp_path}"))


def test_only_clip_has_a_class_token_among_its_features(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SMALL)).save_pretrained(tmp_path)
    encoder = build_vision(VisionConfig(encoder=f"clip:{tmp_path}", class_token=True))
    assert encoder(torch.zeros(1, 3, 32, 32)).shape[1] == 17
    with pytest.raises(ConfigError, match="class_token is true; dino has none"):
        VisionConfig(encoder="dino:facebook/dinov2-base", class_token=True)


@pytest.mark.parametrize("model_type", TOWERS)
def test_a_skeleton_by_the_architecture_alone(model_type: str, tmp_path: Path) -> None:
    family, settings, _, width = TOWERS[model_type]
    told = "\n".join(f"{key} = {value}" for key, value in settings.items())
    toml = tmp_path / "model.toml"
    toml.write_text(f"""
lm = "org/lm"
adapter = "adapter.safetensors"
tokens = {{ bos = "", media = "<image>", end = "<end>" }}
vision = {{ encoder = "{family}:org/tower" }}
resampler = {{ features = {width} }}
xattn = {{}}
lm_config = {{ model_type = "llama", hidden_size = 32, num_hidden_layers = 2, vocab_size = 9 }}
[vision_config]
model_type = "{model_type}"
{told}
""")
    model = skeleton(read_model_config(str(toml)))
    assert all(p.is_meta for p in model.parameters())
    wanted = random_tower(model_type, settings)
    head = sum(p.numel() for n, p in wanted.named_parameters() if n.startswith("head."))
    ours = sum(p.numel() for p in model.vision.parameters())
    assert ours == sum(p.numel() for p in wanted.parameters()) - head
