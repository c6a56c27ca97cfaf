"""Frozen vision encoders: pictures to grid features.

Legend: B pictures, N patches, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamvid.errors import ConfigError
from flamvid.models.efficientnet_lite import EfficientNetLite, is_lite
from flamvid.models.encoder import Clip, VisionEncoder
from flamvid.models.frozen import CPU
from flamvid.models.transformers_encoder import FAMILIES, load_tower, read_config, tower_of
from flamvid.models.video_encoder import VideoEncoder, video_model

__all__ = ["TimmEncoder", "VisionConfig", "build_vision", "vision_of"]

KINDS = ("timm", *FAMILIES, "pytorchvideo")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Which encoder, `KIND:NAME`, and the pictures it was trained on.

    encoder: `timm:NAME`; `clip:`, `siglip:` or `dino:` and a folder or Hugging Face id; or
    `pytorchvideo:NAME`, of clips. weights: of a timm model by name or folder, of a pytorchvideo
    model the file (`flamvid.weights.hub.fetch`). class_token: whether a CLIP encoder's CLS is one
    of the features. classifier: whether a timm model has its last layer, which `labels` need.
    size: side of the square that is seen; 0 for pictures wholly as the encoder's authors prepare
    them. resize: how it comes about, by `interpolation`, as in `FrameTransform`. shorter: what the
    shorter side is resized to before a crop; 0 for `size`. antialias: smooth what is shrunk.
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
    shorter: int = 0
    interpolation: str = "bicubic"
    antialias: bool = True
    labels: int = 0
    label_share: float = 0.1
    label_worth: float = 0.0
    label_sure: float = 0.25
    class_token: bool = False
    classifier: bool = True

    def __post_init__(self) -> None:
        kind, _, name = self.encoder.partition(":")
        if kind not in KINDS:
            *others, last = (f"{kind}:NAME" for kind in KINDS)
            raise ConfigError(
                f"vision.encoder is {self.encoder!r}; must be {', '.join(others)} or {last}"
            )
        if self.size < 0:
            raise ConfigError(f"vision.size is {self.size}; must be at least 1 pixel, or 0")
        spec = video_model(name) if kind == "pytorchvideo" else None
        if spec and spec.fixed and self.size not in (0, spec.size):
            raise ConfigError(
                f"vision.size is {self.size}; {name} has positions for {spec.size} alone"
            )
        if self.class_token and kind != "clip":
            raise ConfigError(f"vision.class_token is true; {kind} has none: leave it out")
        if self.labels < 0 or (self.labels and kind != "timm"):
            raise ConfigError(
                f"vision.labels is {self.labels}; must be 0, or above it with a timm encoder"
            )
        if self.labels and not self.classifier:
            raise ConfigError("vision.labels needs a classifier; set classifier = true")

    @property
    def clip(self) -> Clip | None:
        """What a video encoder sees at once."""
        kind, _, name = self.encoder.partition(":")
        return video_model(name).clip if kind == "pytorchvideo" else None

    @property
    def features(self) -> str:
        """What features depend on, as text: they are the same where this is."""
        look = [self.size, self.mean, self.std, self.resize]
        if (finer := (self.shorter, self.interpolation, self.antialias)) != (0, "bicubic", True):
            look.append(finer)
        if self.class_token:
            look.append("class_token")
        return " ".join(str(part) for part in (self.encoder, self.weights, *look))


class TimmEncoder(VisionEncoder):
    """Any timm model: the features before its pooling, as a grid of patches."""

    def __init__(self, name: str, classifier: bool = True) -> None:
        super().__init__()
        self.name, self.classifier = name, classifier
        self.model = EfficientNetLite(name) if is_lite(name) else _timm(name, classifier)
        self.width = self.model.num_features
        if not classifier and not is_lite(name):
            self.left_out = (f"{self.model.default_cfg['classifier']}.",)
        # Convolutions on a CPU run about twice as fast on channels-last memory.
        self.to(memory_format=torch.channels_last)

    def described(self) -> dict[str, Any]:
        return {"encoder": f"timm:{self.name}", "classifier": self.classifier}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` (timm's names) in; missing or unexpected ones are an error."""
        if isinstance(self.model, EfficientNetLite):
            self._check(*self.model.load(tensors))
        else:
            super().load(tensors)

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


def vision_of(config: VisionConfig, table: Mapping[str, Any]) -> VisionEncoder:
    """The encoder as initialised; a tower of transformers by the `table` of its architecture.

    Without a table, by the config.json of the local folder that it names.
    """
    kind, _, name = config.encoder.partition(":")
    if kind == "timm":
        return TimmEncoder(name, config.classifier)
    if kind == "pytorchvideo":
        return VideoEncoder(name)
    return tower_of(kind, table or read_config(Path(name)), config.class_token)


def build_vision(
    config: VisionConfig,
    folder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> VisionEncoder:
    """The frozen encoder; a tower of transformers is read from the local `folder`."""
    kind, _, name = config.encoder.partition(":")
    if kind in FAMILIES:
        encoder: VisionEncoder = load_tower(
            kind, Path(folder or name), dtype, config.class_token, device
        )
    else:
        encoder = vision_of(config, {})
    encoder.requires_grad_(False).eval()
    return encoder
