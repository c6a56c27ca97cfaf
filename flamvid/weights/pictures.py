"""How an encoder's authors prepare pictures, where a model's [vision] leaves it to them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flamvid.errors import ConfigError
from flamvid.models.encoder import Pictures
from flamvid.models.transformers_encoder import FAMILIES
from flamvid.models.video_encoder import video_model
from flamvid.models.vision import VisionConfig
from flamvid.weights import hub

__all__ = ["as_its_authors", "read_processor"]

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def as_its_authors(look: VisionConfig) -> VisionConfig:
    """The same with all about pictures said, if `size` is 0."""
    if look.size:
        return look
    kind, _, name = look.encoder.partition(":")
    if kind in FAMILIES:
        own = read_processor(hub.resolve(name))
    else:
        own = _timm(name) if kind == "timm" else video_model(name).pictures
    return replace(look, **asdict(own))


def read_processor(folder: Path) -> Pictures:
    """What a Hugging Face folder's preprocessor_config.json says.

    ConfigError where it says what can't be done, or too little.
    """
    path = folder / "preprocessor_config.json"
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        resized, cropped = _size(table), table.get("crop_size") or {}
        if isinstance(cropped, int):
            cropped = {"height": cropped, "width": cropped}
        crops = bool(table.get("do_center_crop")) and "shortest_edge" in resized
        seen = cropped if crops else resized
        if seen["height"] != seen["width"]:
            raise ValueError(f"{seen} is no square")
        return Pictures(
            size=int(seen["height"]),
            shorter=int(resized["shortest_edge"]) if crops else 0,
            mean=_colours(table["image_mean"]),
            std=_colours(table["image_std"]),
            resize="crop_floor" if crops else "squash",
            interpolation=_INTERPOLATIONS[int(table["resample"])],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} doesn't say how pictures are prepared ({type(error).__name__}: {error}); "
            "say it in the model's [vision]: size, mean, std, resize"
        ) from error


def _size(table: Mapping[str, Any]) -> Mapping[str, int]:
    """What pictures are resized to: height and width, or shortest_edge."""
    if "max_num_patches" in table:  # siglip2: so many patches of any shape; of us, a square
        side = int(table["patch_size"]) * math.isqrt(int(table["max_num_patches"]))
        return {"height": side, "width": side}
    size: int | dict[str, int] = table["size"]
    return {"shortest_edge": size} if isinstance(size, int) else size


def _colours(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _timm(name: str) -> Pictures:
    """What timm says of a model's best weights."""
    from timm.models import get_pretrained_cfg

    own = get_pretrained_cfg(name)
    if own is None or own.interpolation not in _INTERPOLATIONS.values():
        raise ConfigError(
            f"timm doesn't say how pictures for {name} are prepared; say size, mean, std and "
            "resize in the model's [vision]"
        )
    size, crops = own.input_size[-1], own.crop_mode == "center"
    return Pictures(
        size=size,
        shorter=math.floor(size / own.crop_pct) if crops else 0,
        mean=_colours(own.mean),
        std=_colours(own.std),
        resize="crop" if crops else "squash",
        interpolation=own.interpolation,
    )
