"""Frozen vision encoders: pictures to grid features.

Legend: B pictures, N patches, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.efficientnet_lite import EfficientNetLite, is_lite
from flamvid.models.frozen import CPU, frozen_from

__all__ = ["ClipEncoder", "TimmEncoder", "VisionConfig", "build_vision", "load_clip", "vision_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Which encoder (`timm:NAME` or `clip:FOLDER-OR-ID`), and the pictures it was trained on.

    class_token: whether a CLIP encoder's CLS is one of the features. classifier: whether a timm
    model has its last layer, which `labels` need.
    labels: so many of the encoder's own class names are said in the prompt of a caption, of those
    that it is sure of by at least `label_share`; ImageNet encoders only. label_worth: what a
    caption gains in the search by saying one, in nats, times how much surer than `label_sure` the
    encoder is of it.
    """

    encoder: str
    weights: str = ""
    size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "squash"
    labels: int = 0
    label_share: float = 0.1
    label_worth: float = 0.0
    label_sure: float = 0.25
    class_token: bool = False
    classifier: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"vision.size is {self.size}; must be at least 1 pixel")
        if self.encoder.partition(":")[0] not in ("timm", "clip"):
            raise ConfigError(
                f"vision.encoder is {self.encoder!r}; must be timm:NAME or clip:FOLDER-OR-ID"
            )
        if self.labels < 0 or (self.labels and not self.encoder.startswith("timm:")):
            raise ConfigError(
                f"vision.labels is {self.labels}; must be 0, or above it with a timm encoder"
            )
        if self.labels and not self.classifier:
            raise ConfigError("vision.labels needs a classifier; set classifier = true")

    @property
    def features(self) -> str:
        """What features depend on, as text: they are the same where this is."""
        look = (self.size, self.mean, self.std, self.resize)
        return " ".join(str(part) for part in (self.encoder, self.weights, *look))


class TimmEncoder(nn.Module):
    """Any timm model: the features before its pooling, as a grid of patches."""

    def __init__(self, name: str, classifier: bool = True) -> None:
        super().__init__()
        self.name, self.classifier = name, classifier
        self.model: Any = EfficientNetLite(name) if is_lite(name) else _timm(name, classifier)
        self.width: int = self.model.num_features
        # Convolutions on a CPU run about twice as fast on channels-last memory.
        self.to(memory_format=torch.channels_last)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` (timm's names) in; missing or unexpected ones are an error."""
        if isinstance(self.model, EfficientNetLite):
            missing, extra = self.model.load(tensors)
        else:
            result = self.model.load_state_dict(dict(tensors), strict=False)
            missing, extra = result.missing_keys, result.unexpected_keys
            if not self.classifier:
                head = f"{self.model.default_cfg['classifier']}."
                extra = [k for k in extra if not k.startswith(head)]
            missing = [k for k in missing if not k.endswith("num_batches_tracked")]
        if missing or extra:
            raise WeightsError(
                f"vision weights do not fit: missing {missing[:3]}, unexpected {extra[:3]}"
            )

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Features [B,N,F]."""
        pictures = pictures_B3HW.contiguous(memory_format=torch.channels_last)
        features = self.model.forward_features(pictures)
        if features.ndim == 4 and features.shape[1] == self.width:  # a convnet: B x F x h x w
            features = features.flatten(2).transpose(1, 2)
        elif features.ndim == 4:  # channels last, as swin has it: B x h x w x F
            features = features.flatten(1, 2)
        out: Tensor = features.contiguous()
        return out

    def classify(self, features_BNF: Tensor) -> Tensor:
        """Logits over the classes that a convnet was trained on, [B,classes], of its features."""
        out: Tensor = self.model.get_classifier()(features_BNF.mean(1))
        return out


def _timm(name: str, classifier: bool) -> Any:
    import timm  # a second, which only its own models are worth

    try:
        return timm.create_model(
            name, pretrained=False, **({} if classifier else {"num_classes": 0})
        )
    except RuntimeError as error:
        near = ", ".join(timm.list_models(f"*{name}*")[:3]) or "see timm.list_models()"
        raise ConfigError(f"timm has no model {name!r}; near: {near}") from error


class ClipEncoder(nn.Module):
    """A Hugging Face CLIP vision tower: tokens of the last layer before its last norm.

    class_token: whether CLS stands in front of the patches (IDEFICS) or is dropped.
    """

    def __init__(self, model: nn.Module, class_token: bool = False) -> None:
        super().__init__()
        self.model = model
        self.first = 0 if class_token else 1
        self.width: int = model.config.hidden_size  # type: ignore[union-attr, assignment]

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Features [B,N,F]."""
        out: Tensor = self.model(pixel_values=pictures_B3HW).last_hidden_state[:, self.first :]
        return out


def load_clip(
    folder: Path, dtype: torch.dtype, class_token: bool = False, device: torch.device = CPU
) -> ClipEncoder:
    """The vision tower of a CLIP in a local folder."""
    from transformers import CLIPVisionModel

    model = frozen_from(CLIPVisionModel, folder, dtype, "CLIP vision encoder", device)
    return ClipEncoder(model, class_token)


def vision_of(config: VisionConfig, table: Mapping[str, object]) -> TimmEncoder | ClipEncoder:
    """The encoder as initialised; a CLIP tower by the `table` of its architecture."""
    kind, _, name = config.encoder.partition(":")
    if kind == "timm":
        return TimmEncoder(name, config.classifier)
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return ClipEncoder(CLIPVisionModel(CLIPVisionConfig(**table)), config.class_token)


def build_vision(
    config: VisionConfig,
    folder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> TimmEncoder | ClipEncoder:
    """The frozen encoder; a CLIP tower is read from the local `folder`."""
    kind, _, name = config.encoder.partition(":")
    encoder: TimmEncoder | ClipEncoder
    if kind == "clip":
        encoder = load_clip(Path(folder or name), dtype, config.class_token, device)
    else:
        encoder = TimmEncoder(name, config.classifier)
    encoder.requires_grad_(False).eval()
    return encoder
