"""The heads that search embeds with, and a loaded model's embedder of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from flamvid import config
from flamvid.errors import WeightsError
from flamvid.models.contrastive import ContrastiveConfig, DualHead, Embedder, mean_states
from flamvid.models.vision import TimmEncoder
from flamvid.weights.adapter import load_adapter, save_adapter
from flamvid.weights.load import LoadedModel

__all__ = ["load_embedder", "load_head", "save_head", "text_states"]

_TEXTS = 64  # that go through the language model together


def load_embedder(model: LoadedModel) -> Embedder | None:
    """What makes vectors of this model's features and of texts; None if it has no heads for it."""
    if not model.config.contrastive:
        return None
    path = Path(model.config.contrastive)
    head = load_head(path).to(model.device)
    vision = model.flamingo.vision
    if head.config.classes and not isinstance(vision, TimmEncoder):
        raise WeightsError(f"{path} wants an encoder that classifies; {model.config.name} has none")

    def classify(pooled_TF: Tensor) -> Tensor:
        assert isinstance(vision, TimmEncoder)
        return vision.classify(pooled_TF[:, None].to(model.device, model.dtype)).float()

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    states = text_states(model, head.config.layer)
    return Embedder(f"{model.config.name} {digest}", head, states, classify)


def text_states(model: LoadedModel, depth: int) -> Callable[[Sequence[str]], Tensor]:
    """Texts to the mean states, float32 [B,D], of their tokens after `depth` layers of the LM."""

    @torch.inference_mode()
    def states(texts: Sequence[str]) -> Tensor:
        rows = [model.prompts.encode_text(f" {plain(text)}") for text in texts]
        out = torch.empty(len(rows), model.flamingo.lm.lm.config.hidden_size)
        # Of one length each, as near as can be: padding costs as much as text does.
        for chosen in _parts(sorted(range(len(rows)), key=lambda row: len(rows[row]))):
            ids = torch.zeros(len(chosen), max(len(rows[row]) for row in chosen), dtype=torch.long)
            real = torch.zeros_like(ids)
            for at, row in enumerate(chosen):
                ids[at, : len(rows[row])] = torch.tensor(rows[row])
                real[at, : len(rows[row])] = 1
            ids, real = ids.to(model.device), real.to(model.device)
            hidden = model.flamingo.lm.states(ids, real, depth)
            out[chosen] = mean_states(hidden.float(), real).cpu()
        return out.to(model.device)

    return states


def plain(text: str) -> str:
    """Lower case without a full stop, as the heads were trained."""
    return " ".join(text.lower().split()).rstrip(" .")


def _parts(rows: Sequence[int]) -> list[list[int]]:
    return [list(rows[at : at + _TEXTS]) for at in range(0, len(rows), _TEXTS)]


def save_head(path: Path, head: DualHead) -> None:
    """Write the head in half precision, with its sizes."""
    tensors = {name: tensor.half() for name, tensor in head.state_dict().items()}
    save_adapter(path, tensors, {"contrastive": asdict(head.config)})


def load_head(path: Path) -> DualHead:
    """The head of a file that `save_head` wrote, in float32."""
    tensors, table = load_adapter(path)
    if not isinstance(table.get("contrastive"), dict):
        raise WeightsError(f"{path} holds no contrastive head; give what such a training wrote")
    head = DualHead(config.build(ContrastiveConfig, table["contrastive"], str(path)))
    try:
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} does not fit its own configuration: {reason}") from error
    return head.requires_grad_(False).eval()
