"""What makes a model's features: said the same by all who put them in a store."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch

from flamvid.store import Provenance
from flamvid.weights.load import LoadedModel

__all__ = ["provenance_of"]


class _Embedder(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...


def provenance_of(
    model: LoadedModel,
    sampling: str,
    *,
    patches: int,
    width: int,
    dtype: str = "float16",
    embedder: _Embedder | None = None,
) -> Provenance:
    """What features [T,N,F] by this model's encoder are, of frames that were chosen so.

    patches, width: N and F. embedder: what makes the search vectors [T,E], if any are kept.
    """
    return Provenance(
        encoder=model.config.vision.encoder,
        weights_sha256=_digest(model),
        preprocessing=str(model.transform),
        sampling=sampling,
        patches=patches,
        width=width,
        dtype=dtype,
        embedder="" if embedder is None else embedder.name,
        embedding=0 if embedder is None else embedder.width,
    )


def _digest(model: LoadedModel) -> str:
    """Of the encoder's tensors as they are computed with, dtype included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.flamingo.vision.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
