"""Folded EfficientNet-Lite against timm's, with batch norms that do something."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from flamvid.models.efficientnet_lite import EfficientNetLite, is_lite


def reference(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def features(model: nn.Module, pictures: Tensor) -> Tensor:
    out: Tensor = model.forward_features(pictures)  # type: ignore[operator]
    return out


@pytest.mark.parametrize("name", [f"tf_efficientnet_lite{n}" for n in range(5)])
@torch.inference_mode()
def test_features_are_those_of_timm(name: str) -> None:
    theirs, ours = reference(name), EfficientNetLite(name).double()
    assert is_lite(name)
    assert ours.load(theirs.state_dict()) == ([], [])
    # Odd and even sizes, which TensorFlow pads differently.
    for size in ((64, 64), (65, 50), (33, 98)):
        pictures = torch.randn(2, 3, *size, dtype=torch.float64)
        want = features(theirs, pictures)
        torch.testing.assert_close(features(ours, pictures), want, atol=1e-9, rtol=1e-9)
    pooled = want.mean((2, 3))
    torch.testing.assert_close(
        ours.get_classifier()(pooled),
        theirs.get_classifier()(pooled),  # type: ignore[operator]
    )


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    ours = EfficientNetLite("tf_efficientnet_lite0")
    nn.init.zeros_(ours.stem.weight)
    tensors = dict(reference("tf_efficientnet_lite0").state_dict())
    del tensors["blocks.3.1.bn2.running_var"]
    tensors["odd"] = torch.zeros(1)
    assert ours.load(tensors) == (["blocks.3.1.bn2.running_var"], ["odd"])
    assert not ours.stem.weight.any()
    assert not is_lite("tf_efficientnet_b0")
