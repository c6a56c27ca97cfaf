"""Search vectors of a model whose encoder is CLIP's: CLIP's own, of pictures and of texts.

Radford et al. 2021 (arXiv 2103.00020), section 2.3: the class token and the end of the text, each
projected into one space.

Legend: B pictures or texts, N patches, F feature width, E joint width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.models.frozen import frozen_from
from flamvid.models.transformers_encoder import TransformersEncoder
from flamvid.weights import hub
from flamvid.weights.load import LoadedModel

__all__ = ["ClipEmbedder", "load_clip_embedder"]


class ClipEmbedder:
    """Vectors by CLIP's projections. model: transformers' CLIPModel, without its vision tower."""

    def __init__(self, vision: TransformersEncoder, model: Any, tokenizer: Any) -> None:
        self._vision, self._model, self._tokenizer = vision, model, tokenizer
        self.width: int = model.config.projection_dim
        projections = model.visual_projection.weight, model.text_projection.weight
        digest = hashlib.sha256()
        for weight in projections:
            digest.update(weight.float().cpu().numpy().tobytes())
        self.name = f"CLIP {digest.hexdigest()[:12]}"

    @torch.inference_mode()
    def look(self, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B,N,F] as the encoder gives them, and vectors [B,E], of one run of it."""
        seen = self._vision.model(pixel_values=pictures_B3HW)
        features = seen.last_hidden_state[:, self._vision.first :]
        return features, self._model.visual_projection(seen.pooler_output).float()

    @torch.inference_mode()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1, float32 [B,E]."""
        device = self._model.text_projection.weight.device
        longest = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        read = self._model.text_model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"]
        )
        return F.normalize(self._model.text_projection(read.pooler_output).float(), dim=-1)


def load_clip_embedder(model: LoadedModel) -> ClipEmbedder | None:
    """CLIP's own, where the folder of the encoder holds a whole CLIP; else None."""
    kind, _, name = model.config.vision.encoder.partition(":")
    vision = model.flamingo.vision
    if kind != "clip" or not isinstance(vision, TransformersEncoder):
        return None
    if vision.model.config.image_size != model.config.vision.size:
        return None  # its vectors were trained on pictures of one size
    folder = hub.resolve(name)
    if not _whole(folder):
        return None
    from transformers import AutoTokenizer, CLIPModel

    clip = frozen_from(CLIPModel, folder, model.dtype, "CLIP", model.device)
    del clip.vision_model  # the model has one of its own
    return ClipEmbedder(vision, clip, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _whole(folder: Path) -> bool:
    """Whether there is a text tower with its tokenizer: some keep the vision tower alone."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    words = ("tokenizer.json", "vocab.json")
    return config.get("model_type") == "clip" and any((folder / w).exists() for w in words)
