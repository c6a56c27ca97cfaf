"""Video encoders against pytorchvideo's own blocks, on random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.video_encoder import VIDEO_MODELS, VideoEncoder
from flamvid.models.vision import VisionConfig, build_vision, vision_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles with torch.jit, which is deprecated
    from pytorchvideo.models import hub


def scatter(model: nn.Module) -> None:
    """Values that leave no norm and no position without effect."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or "pos_embed" in name or "cls_token" in name:
            value.normal_(std=0.1)


def whole_and_bare(name: str) -> tuple[Any, VideoEncoder]:
    """pytorchvideo's model with its head, and ours with its weights."""
    whole = getattr(hub, name)().eval()
    scatter(whole)
    encoder = build_vision(VisionConfig(encoder=f"pytorchvideo:{name}", size=0))
    assert isinstance(encoder, VideoEncoder)
    encoder.load(whole.state_dict())
    return whole, encoder


def run(blocks: Any, x: Any) -> Any:
    for block in blocks:
        x = block(x)
    return x


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["x3d_xs", "slow_r50"])
@torch.no_grad()
def test_the_map_before_the_head(name: str) -> None:
    whole, encoder = whole_and_bare(name)
    spec = VIDEO_MODELS[name]
    pictures = torch.randn(spec.frames, 3, 64, 64)
    features_TNF = encoder(pictures)
    assert features_TNF.shape == (spec.steps, 4, spec.width)
    expected = run(whole.blocks[:-1], pictures.transpose(0, 1)[None])[0]  # F x T x h x w
    for t in range(spec.steps):
        for y in range(2):
            for x in range(2):
                close(features_TNF[t, 2 * y + x], expected[:, t, y, x])


@torch.no_grad()
def test_slowfast_joins_its_pathways_at_the_slow_ones_rate() -> None:
    whole, encoder = whole_and_bare("slowfast_r50")
    pictures = torch.randn(32, 3, 64, 64)
    features_TNF = encoder(pictures)
    assert features_TNF.shape == (8, 4, 2304)

    clip = pictures.transpose(0, 1)[None]
    at = torch.linspace(0, 31, 8).long()  # PackPathway of pytorchvideo's tutorial
    assert at.tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    slow, fast = run(whole.blocks[:5], [clip[:, :, at], clip])
    close(features_TNF[..., :2048], slow[0].permute(1, 2, 3, 0).flatten(1, 2))
    for t in range(8):
        mean = fast[0, :, 4 * t : 4 * t + 4].mean(1)  # F x h x w
        close(features_TNF[t, :, 2048:], mean.flatten(1).t())
    # Its head pools over all of time and space: means of our features are what it classifies.
    pooled = torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)[0]
    close(features_TNF.mean((0, 1)), pooled)


@torch.no_grad()
def test_mvit_without_its_class_token() -> None:
    whole, encoder = whole_and_bare("mvit_base_16x4")
    seen: list[Tensor] = []
    whole.norm_embed.register_forward_hook(lambda *args: seen.append(args[2]))
    pictures = torch.randn(16, 3, 224, 224)
    whole(pictures.transpose(0, 1)[None])
    [tokens] = seen  # 1 x (1 + 8 * 7 * 7) x F
    features_TNF = encoder(pictures)
    assert features_TNF.shape == (8, 49, 768)
    close(features_TNF.flatten(0, 1), tokens[0, 1:])


@torch.no_grad()
def test_clips_of_a_media_are_encoded_one_by_one() -> None:
    encoder = build_vision(VisionConfig(encoder="pytorchvideo:x3d_xs", size=0))
    assert isinstance(encoder, VideoEncoder)
    pictures = torch.randn(8, 3, 64, 64)
    each = torch.cat([encoder(pictures[:4]), encoder(pictures[4:])])
    close(encoder(pictures), each)
    # What fills no whole clip is spread over one, in order.
    close(encoder(pictures[:2]), encoder(pictures[[0, 0, 1, 1]]))
    close(encoder(pictures[:1]), encoder(pictures[[0, 0, 0, 0]]))
    close(encoder(pictures[:6]), encoder(pictures[[0, 1, 1, 2, 3, 4, 4, 5]]))


@pytest.mark.parametrize("name", [name for name in VIDEO_MODELS if name != "mvit_base_16x4"])
def test_all_build_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        encoder = vision_of(VisionConfig(encoder=f"pytorchvideo:{name}", size=0), {})
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    assert encoder.clip == VIDEO_MODELS[name].clip


def test_names_are_those_of_pytorchvideo() -> None:
    for name in VIDEO_MODELS:
        assert callable(getattr(hub, name))
    published = {
        path.rpartition("/")[2]
        for module in ("x3d", "slowfast", "resnet", "vision_transformers")
        for path in getattr(hub, module).checkpoint_paths.values()
    }
    for model in VIDEO_MODELS.values():
        assert model.file in published
        assert model.address.endswith(f"/kinetics/{model.file}")


def test_weights_of_another_model_do_not_fit() -> None:
    encoder = VideoEncoder("x3d_xs")
    tensors = dict(hub.x3d_xs().state_dict())
    del tensors["blocks.0.conv.conv_t.weight"]
    with pytest.raises(WeightsError, match=r"missing \['blocks\.0\.conv\.conv_t\.weight'\]"):
        encoder.load(tensors)


def test_what_can_not_be_is_told() -> None:
    with pytest.raises(ConfigError, match="must be one of x3d_xs, x3d_s"):
        VisionConfig(encoder="pytorchvideo:x3d")
    with pytest.raises(ConfigError, match="has positions for 224 alone"):
        VisionConfig(encoder="pytorchvideo:mvit_base_16x4", size=112)


def test_a_file_is_read_as_tensors(tmp_path: Path) -> None:
    from flamvid.weights.formats import load_encoder

    whole = hub.x3d_xs()
    torch.save({"model_state": whole.state_dict()}, tmp_path / "X3D_XS.pyth")
    encoder = VideoEncoder("x3d_xs")
    load_encoder(encoder, tmp_path / "X3D_XS.pyth")
    expected = whole.state_dict()
    for name, tensor in encoder.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
