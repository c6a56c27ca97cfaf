"""How many parameters each part of a model has, told without fetching it."""

from __future__ import annotations

from torch import nn

from flamvid.models.build import ModelConfig, skeleton

__all__ = ["sizes"]


def sizes(config: ModelConfig) -> dict[str, int]:
    """Parameters by part and in total; empty where the configuration lacks the architecture."""
    if not config.lm_config:
        return {}
    model = skeleton(config)
    parts = {
        "vision encoder": _count(model.vision),
        "resampler": _count(model.resampler),
        "cross-attention": _count(model.lm.inserted),
        "language model": _count(model.lm.lm),
    }
    return {**parts, "total": sum(parts.values())}


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
