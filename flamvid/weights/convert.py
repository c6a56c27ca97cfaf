"""Any model that can be loaded, as one folder of ours: safetensors, TOML, tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path

from flamvid.errors import InputError
from flamvid.models.build import ModelConfig, about
from flamvid.models.card import Card
from flamvid.models.frozen import CPU
from flamvid.weights import hub
from flamvid.weights.formats import build
from flamvid.weights.load import load_config, torch_dtype
from flamvid.weights.source import source_config

__all__ = ["convert"]


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
        flamingo, _ = build(config, torch_dtype(dtype), CPU)
        flamingo.card = Card(about(config))
        flamingo.save_pretrained(destination)
        print(
            f"flamvid: {config.lm} holds no tokenizer.json, so {destination} gets none and can't "
            "caption; copy one to it",
            file=sys.stderr,
        )
        return destination
    model = load_config(config, "cpu", dtype)
    model.flamingo.save_pretrained(destination)
    return destination


def _foreign(config: ModelConfig) -> bool:
    return config.format not in ("flamvid", "saved")
