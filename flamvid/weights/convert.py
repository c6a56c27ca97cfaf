"""Any model that can be loaded, as one folder of ours: safetensors, TOML, tokenizer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flamvid.errors import InputError
from flamvid.models.build import ModelConfig
from flamvid.models.frozen import CPU
from flamvid.weights import hub
from flamvid.weights.formats import build
from flamvid.weights.load import load_config, torch_dtype
from flamvid.weights.source import source_config

__all__ = ["about", "convert"]

HEAD = "contrastive.safetensors"  # what search embeds with, beside the model


def convert(
    source: str,
    destination: Path,
    *,
    like: str | None = None,
    lm: str | None = None,
    clip: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Write `destination`, which `flamvid.load` and `Flamingo.from_pretrained` read.

    source and the options as for `source_config`; dtype: of the stored weights, the model's own
    if None. Returns the destination.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists and is no empty folder; name another")
    config = source_config(source, like=like, lm=lm, clip=clip)
    if dtype == "int8":
        raise InputError("dtype is 'int8'; weights are stored as fp32, bf16 or fp16: load as int8")
    dtype = dtype or config.dtype
    if _foreign(config) and not (hub.resolve(config.lm) / "tokenizer.json").is_file():
        print(
            f"flamvid: {config.lm} holds no tokenizer.json, so {destination} gets none and can't "
            "caption; copy one to it",
            file=sys.stderr,
        )
        flamingo, _ = build(config, torch_dtype(dtype), CPU)
        flamingo.save_pretrained(destination, about=about(config))
        return destination
    model = load_config(config, "cpu", dtype)
    vocabulary = None if model.head is None else model.head.ids
    table = {**about(model.config), "contrastive": HEAD if config.contrastive else ""}
    model.flamingo.save_pretrained(destination, about=table, vocabulary=vocabulary)
    model.prompts.tokenizer.save_pretrained(destination)
    if config.contrastive:
        shutil.copyfile(config.contrastive, destination / HEAD)
    return destination


def _foreign(config: ModelConfig) -> bool:
    return config.format not in ("flamvid", "saved")


def about(config: ModelConfig) -> Mapping[str, Any]:
    """What a saved model says of itself beside its sizes."""
    return {
        "name": config.name,
        "lm": config.lm,
        "licence": config.licence,
        "frames": config.frames,
        "tokens": asdict(config.tokens),
        "prompt": asdict(config.prompt),
        "vision": asdict(config.vision),
    }
