"""Any model that can be loaded, as one folder of ours: safetensors, TOML, tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flamvid.errors import InputError
from flamvid.models.build import ModelConfig, read_model_config
from flamvid.models.pretrained import TOML
from flamvid.weights.load import load_config

__all__ = ["about", "convert", "source_config"]

HEAD = "contrastive.safetensors"  # what search embeds with, beside the model
# Presets whose prompts and pictures are those of a checkpoint that says what it is.
_LIKE = {"idefics": "idefics-9b", "otter": "otter-image", "flamingo": "otter-image"}


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
    model = load_config(config, "cpu", dtype or config.dtype)
    vocabulary = None if model.head is None else model.head.ids
    table = {**about(model.config), "contrastive": HEAD if config.contrastive else ""}
    model.flamingo.save_pretrained(destination, about=table, vocabulary=vocabulary)
    model.prompts.tokenizer.save_pretrained(destination)
    if config.contrastive:
        shutil.copyfile(config.contrastive, destination / HEAD)
    return destination


def source_config(
    source: str, *, like: str | None = None, lm: str | None = None, clip: str | None = None
) -> ModelConfig:
    """The configuration of a model by name, or of a checkpoint as its author left it.

    source: a preset, a TOML, a saved folder; or a checkpoint's file or folder, whose prompts and
    pictures are those of the preset `like`. lm, clip: local folders in place of what it names.
    """
    path = Path(source)
    raw = path.exists() and path.suffix != ".toml" and not (path / TOML).is_file()
    if not raw:
        config = read_model_config(source)
    else:
        config = read_model_config(like or _guess(path))
        config = replace(config, name=path.stem, adapter=str(path))
        if config.format in ("idefics", "otter"):
            config = replace(config, lm=str(path))
    if lm is not None:
        config = replace(config, lm=lm)
    if clip is not None:
        config = replace(config, vision=replace(config.vision, encoder=f"clip:{clip}"))
    return config


def _guess(path: Path) -> str:
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
        return _LIKE[kind]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say whose model it is; say so with like, such as "
            "--like openflamingo-3b"
        ) from error


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
