"""Vision towers that transformers implements: CLIP, SigLIP and DINO.

Legend: B pictures, N patches, F feature width, P a patch's side, H, W a picture's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.encoder import VisionEncoder
from flamvid.models.frozen import CPU, blaming, frozen_from, frozen_of

__all__ = [
    "FAMILIES",
    "TransformersEncoder",
    "load_tower",
    "read_config",
    "saved_tower",
    "tower_of",
]

FAMILIES: Mapping[str, Mapping[str, int]] = {
    "clip": {"clip_vision_model": 1},
    "siglip": {"siglip_vision_model": 0, "siglip2_vision_model": 0},
    "dino": {"dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1, "dinov3_convnext": 1},
}
"""Kinds of encoder, the `model_type`s of each, and how many tokens of the whole picture come first.

SigLIP 2 of one size, such as siglip2-base-patch16-224, is a siglip; siglip2 is the "naflex" one.
"""


class TransformersEncoder(VisionEncoder):
    """A tower's last hidden states: SigLIP's and DINO's after their last norm, CLIP's before it.

    Neither the class token nor registers are features; class_token: but for CLIP's (IDEFICS).
    Pictures of another size than the tower was trained on get interpolated positions.
    """

    def __init__(self, model: Any, class_token: bool = False) -> None:
        super().__init__()
        self.model, self.class_token = model, class_token
        self.kind: str = model.config.model_type
        self.family = next(kind for kind, types in FAMILIES.items() if self.kind in types)
        registers: int = getattr(model.config, "num_register_tokens", 0)
        self.first = 0 if class_token else FAMILIES[self.family][self.kind] + registers
        # A convnet has a width at each stage, and no name for the last.
        self.width = getattr(model.config, "hidden_size", 0) or model.config.hidden_sizes[-1]

    def described(self) -> dict[str, Any]:
        return {"encoder": f"{self.family}:saved", "class_token": self.class_token}

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Features [B,N,F]."""
        if self.kind == "siglip2_vision_model":
            inputs = _patched(pictures_B3HW, self.model.config.patch_size)
        else:
            inputs = {"pixel_values": pictures_B3HW}
            if self.family != "dino":  # which always does
                side = self.model.config.image_size
                inputs["interpolate_pos_encoding"] = pictures_B3HW.shape[-2:] != (side, side)
        out: Tensor = self.model(**inputs).last_hidden_state[:, self.first :]
        return out


def _patched(pictures_B3HW: Tensor, P: int) -> dict[str, Any]:
    """Pictures as siglip2 takes them: patches [B,N,P*P*3], none of which is padding."""
    B, _, H, W = pictures_B3HW.shape
    grid = pictures_B3HW.unflatten(3, (W // P, P)).unflatten(2, (H // P, P))
    patches_BNX = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return {
        "pixel_values": patches_BNX,
        "pixel_attention_mask": torch.ones(patches_BNX.shape[:2], device=grid.device).int(),
        "spatial_shapes": torch.tensor([[H // P, W // P]] * B),
    }


def load_tower(
    family: str,
    folder: Path,
    dtype: torch.dtype,
    class_token: bool = False,
    device: torch.device = CPU,
) -> TransformersEncoder:
    """The tower of a kind in a local folder, be it alone or in a model with a text tower."""
    config = _config(family, read_config(folder))
    what = f"{family} vision encoder"
    model = frozen_from(_class(config), folder, dtype, what, device, **_headless(config))
    return TransformersEncoder(model, class_token)


def tower_of(family: str, table: Mapping[str, Any], class_token: bool) -> TransformersEncoder:
    """The tower as initialised, of the architecture in a table such as a config.json holds."""
    config = _config(family, table)
    config.update(_headless(config))
    return TransformersEncoder(_class(config)(config), class_token)


def saved_tower(
    family: str,
    table: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: Path,
    class_token: bool,
    device: torch.device,
) -> TransformersEncoder:
    """The tower of a saved model: its architecture, and all of its tensors."""
    config = _config(family, table)
    model = frozen_of(_class(config), config, tensors, dtype, source, device)
    return TransformersEncoder(model, class_token)


def read_config(folder: Path) -> Mapping[str, Any]:
    """The config.json of a local folder."""
    try:
        table: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no config.json that can be read") from error
    if not isinstance(table, dict):
        raise WeightsError(f"{folder}/config.json is no table of settings; fetch it again")
    return table


def _config(family: str, table: Mapping[str, Any]) -> Any:
    """The tower's configuration; of a model with two towers, the vision tower's."""
    from transformers import AutoConfig

    types = FAMILIES[family]
    found = str(table.get("model_type", next(iter(types))))
    if f"{found}_vision_model" in types:  # the whole model of that name
        found, table = f"{found}_vision_model", table.get("vision_config", {})
    if found not in types:
        raise ConfigError(
            f"a {family} encoder can't be a {found!r}; its model_type must be {', '.join(types)}"
        )
    with blaming(f"no {family} encoder is of this configuration"):
        rest = {key: value for key, value in table.items() if key != "model_type"}
        return AutoConfig.for_model(found, **rest)


def _class(config: Any) -> Any:
    from transformers import MODEL_MAPPING

    return MODEL_MAPPING[type(config)]


def _headless(config: Any) -> dict[str, Any]:
    """What leaves out SigLIP's pooling, which is behind the features."""
    return {"vision_use_head": False} if hasattr(config, "vision_use_head") else {}
