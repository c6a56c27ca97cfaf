"""The rows of the paper's ablation table, and what each changes here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flamvid.models.build import ModelConfig

__all__ = ["CORPORA", "ROWS", "Paper", "Row"]

Change = Callable[[ModelConfig], ModelConfig]
CORPORA = ("videos", "images", "documents")


@dataclass(frozen=True, slots=True)
class Paper:
    """What the paper prints of a row: parameters in billions, seconds a step, overall score."""

    billions: float
    seconds: float | None = None
    overall: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One ablation: another model, other corpora, or another way to update.

    lm_share: the share of the learning rate that a language model has which is not frozen.
    """

    name: str
    paper: Paper
    change: Change = lambda config: config
    corpora: tuple[str, ...] = CORPORA
    mixing: str = "accumulate"
    lm_share: float = 0.1


def _resampler(**values: Any) -> Change:
    return lambda config: replace(config, resampler=replace(config.resampler, **values))


def _xattn(**values: Any) -> Change:
    return lambda config: replace(config, xattn=replace(config.xattn, **values))


def _every(times: int) -> Change:
    return lambda config: _xattn(every=times * config.xattn.every)(config)


def _depth(times: float, **values: Any) -> Change:
    def change(config: ModelConfig) -> ModelConfig:
        depth = max(1, round(times * config.resampler.depth))
        return _resampler(depth=depth, **values)(config)

    return change


def _single(config: ModelConfig) -> ModelConfig:
    """In the middle of those layers that the original reads through."""
    layers = int(config.lm_config["num_hidden_layers"])
    places = config.xattn.positions(layers)
    return _xattn(first=places[len(places) // 2], every=layers)(config)


def _grafting(config: ModelConfig) -> ModelConfig:
    """A third as many layers, which have as many parameters with their self-attention."""
    places = config.xattn.positions(int(config.lm_config["num_hidden_layers"]))
    return _xattn(grafted=max(1, round(len(places) / 3)))(config)


def _lite(number: int, size: int) -> Change:
    def change(config: ModelConfig) -> ModelConfig:
        name, weights = f"timm:tf_efficientnet_lite{number}", f"efficientnet-lite{number}"
        return replace(
            config, vision=replace(config.vision, encoder=name, weights=weights, size=size)
        )

    return change


def _lm(state: str) -> Change:
    return lambda config: replace(config, lm_state=state)


ROWS = (
    Row("original", Paper(3.2, 1.74, 70.7)),
    Row("no video-text", Paper(3.2, 1.42, 67.3), corpora=("images", "documents")),
    Row("no image-text", Paper(3.2, 0.95, 60.9), corpora=("videos", "documents")),
    Row(
        "other image-text (LAION)", Paper(3.2, 1.74, 66.4), corpora=("videos", "other", "documents")
    ),
    Row("no interleaved (M3W)", Paper(3.2, 1.02, 53.4), corpora=("videos", "images")),
    Row("round robin", Paper(3.2, 1.68, 62.9), mixing="round-robin"),
    Row("no tanh gating", Paper(3.2, 1.74, 66.5), _xattn(gated=False)),
    Row("VANILLA XATTN", Paper(2.4, 1.16, 66.9), _xattn(dense=False)),
    Row("GRAFTING", Paper(3.3, 1.74, 63.1), _grafting),
    Row("single in the middle", Paper(2.0, 0.87, 59.8), _single),
    Row("every 4th", Paper(2.3, 1.02, 68.8), _every(4)),
    Row("every 2nd", Paper(2.6, 1.24, 68.2), _every(2)),
    # Three feed-forwards have as many parameters as two blocks of the Perceiver.
    Row("MLP resampler", Paper(3.2, 1.85, 66.6), _depth(1.5, kind="mlp")),
    Row("Transformer resampler", Paper(3.2, 1.81, 66.7), _resampler(kind="transformer")),
    Row("small resampler", Paper(3.1), _depth(0.5)),
    Row("large resampler", Paper(3.4), _depth(2)),
    Row("other encoder: Lite1 (CLIP ViT-L/14)", Paper(3.1, 1.58, 64.9), _lite(1, 240)),
    Row("other encoder: Lite0 (NFNet-F0)", Paper(2.9, 1.45, 62.7), _lite(0, 224)),
    Row("LM from scratch", Paper(3.2, 2.42, 57.8), _lm("scratch"), lm_share=1.0),
    Row("LM pretrained, unfrozen", Paper(3.2, 2.42, 62.7), _lm("unfrozen")),
)
