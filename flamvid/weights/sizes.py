"""How many parameters each part of a model has, told without fetching it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from flamvid.models.build import ModelConfig, read_model_config, skeleton
from flamvid.models.transformers_encoder import FAMILIES
from flamvid.weights.formats import build

__all__ = ["Row", "sizes", "sizes_table", "table_text"]

Row = Mapping[str, str | float | None]

# Names in `sizes`, and at the head of a column.
COLUMNS = {
    "language model": "LM",
    "vision encoder": "vision",
    "cross-attention": "XATTN",
    "resampler": "resampler",
    "total": "total",
}


def sizes(config: ModelConfig) -> dict[str, int]:
    """Parameters by part and in total; empty where the configuration lacks the architecture.

    Of a checkpoint on the disk they are those of its tensors, each of which must have its place:
    what is missing or damaged is a WeightsError, as it would be once it is loaded.
    """
    if _on_disk(config):
        # Of what goes to the meta device names and shapes are read, and nothing more.
        model, _ = build(config, torch.float32, torch.device("meta"), own=False)
    elif config.tells_sizes:
        model = skeleton(config)
    else:
        return {}
    parts = {
        "vision encoder": _count(model.vision),
        "resampler": _count(model.resampler),
        "cross-attention": _count(model.lm.inserted),
        "language model": _count(model.lm.lm),
    }
    return {**parts, "total": sum(parts.values())}


def _on_disk(config: ModelConfig) -> bool:
    """Whether all parts of another's checkpoint, or of a saved model, are files at hand."""
    kind, _, tower = config.vision.encoder.partition(":")
    if config.format in ("saved", "idefics", "otter"):  # everything in one place
        return Path(config.adapter).exists()
    places = (config.adapter, config.lm, tower if kind in FAMILIES else config.vision.weights)
    return config.format != "flamvid" and all(place and Path(place).exists() for place in places)


def sizes_table(names: Sequence[str]) -> list[Row]:
    """Billions of parameters of each model by part, and what the paper's table 5 and 3 say.

    paper, difference: None where the paper gives no total. The projection of latents to the width
    of the LM counts as the resampler's.
    """
    rows: list[Row] = []
    for name in names:
        config = read_model_config(name)
        counts = sizes(config)
        row: dict[str, str | float | None] = {"name": config.name}
        row |= {head: counts[part] / 1e9 if counts else None for part, head in COLUMNS.items()}
        known = bool(counts and config.billions)
        row["paper"] = config.billions if known else None
        row["difference"] = counts["total"] / 1e9 - config.billions if known else None
        rows.append(row)
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """The rows of `sizes_table` under each other, with a head."""
    wide = max([len("name"), *(len(str(row["name"])) for row in rows)])
    heads = [*COLUMNS.values(), "paper", "difference"]
    lines = [f"{'name':<{wide}}" + "".join(f"  {head:>9}" for head in heads) + "  (billions)"]
    for row in rows:
        cells = [_cell(row[head], head) for head in heads]
        lines.append(f"{row['name']:<{wide}}" + "".join(f"  {cell:>9}" for cell in cells))
    return "\n".join(lines)


def _cell(value: str | float | None, head: str) -> str:
    if value is None:
        return "-"
    places = {"paper": ".1f", "difference": "+.3f"}.get(head, ".3f")
    return format(value, places)


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
