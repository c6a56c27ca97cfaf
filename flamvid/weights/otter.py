"""Otter, for pictures and for video: OpenFlamingo's model with everything in one checkpoint.

Source: Luodian/Otter 1e7eb9a, modeling_otter.py. A folder holds config.json with `text_config` and
`vision_config`, and a checkpoint (whole or sharded) with `vision_encoder.*`, `lang_encoder.*` and
`perceiver.*`; a video model's `perceiver.frame_embs` says when each of its frames was seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import CPU, blaming, frozen_of
from flamvid.models.hosts import causal_class, lm_config_of
from flamvid.models.transformers_encoder import TransformersEncoder
from flamvid.weights.foreign import assemble_empty, fill, unwrap
from flamvid.weights.open_flamingo import Dialect, layout, main_names, trained_names
from flamvid.weights.tensors import open_tensors

__all__ = ["load_otter"]

OTTER = Dialect("", "feed_forward", "feed_forward")
_LM, _VISION = "lang_encoder.", "vision_encoder."
_EMBEDDINGS = (".wte.weight", ".embed_tokens.weight", ".embed_in.weight")


def load_otter(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Flamingo:
    """The model in a folder with config.json and its checkpoint."""
    config = _config(folder)
    tensors = unwrap(open_tensors(folder))
    every, frames = config.get("cross_attn_every_n_layers"), config.get("max_num_frames")
    for name, value in (("cross_attn_every_n_layers", every), ("max_num_frames", frames)):
        if value is not None and (type(value) is not int or value < 1):
            raise WeightsError(f"{folder}/config.json: {name} is {value!r}; must be at least 1")
    parts = layout(tensors, folder, dialect=OTTER, every=every)
    if (frames or 1) > 1 and not parts[0].frames:
        raise WeightsError(f"{folder} does not fit the model: missing [perceiver.frame_embs]")

    text = {n: t for n, t in tensors.items() if n.startswith(_LM) and ".gated_cross" not in n}
    text = {n.removeprefix(_LM).replace(".decoder_layer.", "."): t for n, t in text.items()}
    text = {n: t for n, t in text.items() if not n.startswith(("old_decoder_", "gated_cross_"))}
    lm_config = _lm_config(config, folder)
    # What was added for the special tokens is in the table, but not always in the configuration.
    rows = [len(t) for n, t in text.items() if n.endswith(_EMBEDDINGS) and t.ndim]
    lm_config.vocab_size = rows[0] if rows else lm_config.vocab_size
    lm = frozen_of(causal_class(lm_config), lm_config, text, dtype, folder, device)

    seen = {n.removeprefix(_VISION): t for n, t in tensors.items() if n.startswith(_VISION)}
    with blaming(f"{folder}/config.json"):
        vision = CLIPVisionConfig(**config.get("vision_config", {}))
    encoder = TransformersEncoder(frozen_of(CLIPVisionModel, vision, seen, dtype, folder, device))

    flamingo = assemble_empty(encoder, lm, parts)
    rest = {n: t for n, t in tensors.items() if n.startswith("perceiver.") or ".gated_cross" in n}
    names = trained_names(flamingo, parts[1], OTTER)
    trained = {ours: (theirs,) for ours, theirs in names.items()}
    fill(dict(flamingo.trained()), trained, main_names(rest, lm), folder)
    return flamingo.eval()


def _config(folder: Path) -> dict[str, Any]:
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} holds no config.json that can be read: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("text_config"), dict):
        raise WeightsError(f"{folder}/config.json has no text_config; it is no Otter checkpoint")
    return table


def _lm_config(config: dict[str, Any], folder: Path) -> Any:
    try:
        return lm_config_of({"model_type": "llama", **config["text_config"]})
    except ConfigError as error:
        raise WeightsError(f"{folder}/config.json: {error}") from error
