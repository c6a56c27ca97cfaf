"""Frames to what a store keeps of them: features, and vectors to search by.

Legend: B frames, N patches, F feature width, E width of a search vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.index.clip import ClipEmbedder, load_clip_embedder
from flamvid.models.contrastive import Embedder
from flamvid.store import Provenance
from flamvid.weights.embed import load_embedder
from flamvid.weights.load import LoadedModel
from flamvid.weights.provenance import provenance_of

__all__ = ["FrameEncoder", "Pooled", "embedder_of"]


class Pooled:
    """For a model without heads for search: the mean of a frame's features. It knows no words."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.width = model.config.name, model.flamingo.vision.width
        self.name = "mean of features"

    def frames(self, features_TNF: Tensor) -> Tensor:
        """Vectors [T,F]."""
        return features_TNF.float().mean(1)

    def text(self, texts: Sequence[str]) -> Tensor:
        """InputError: pictures and clips can be searched for, words not."""
        raise InputError(
            f"{self.model} has no heads that read a text to search for; index with flamvid-base, "
            "or give a picture or clip (--like FILE)"
        )


def embedder_of(model: LoadedModel) -> Embedder | ClipEmbedder | Pooled:
    """What makes a model's search vectors, of frames and of texts."""
    return load_embedder(model) or load_clip_embedder(model) or Pooled(model)


class FrameEncoder:
    """A model's frozen encoder, and its embedder, over frames of any videos.

    It runs on `batch` frames every time, black ones where there are fewer: what it gives for a
    frame is then the same bit for bit whichever frames stand beside it, so an index that was
    interrupted ends as one that was not. If not given, a batch is 4 frames on a CPU, which is as
    quick with few and keeps less in memory, and 16 elsewhere.
    """

    def __init__(self, model: LoadedModel, batch: int | None = None) -> None:
        if batch is None:
            batch = 4 if model.device.type == "cpu" else 16
        if batch < 1:
            raise InputError(f"the batch is {batch} frames; must be at least 1")
        if model.flamingo.vision.clip is not None:
            raise InputError(
                f"{model.config.name} sees clips, not frames, so there are no features of a frame "
                "to store; index with a model whose encoder sees pictures"
            )
        self.model, self.batch = model, batch
        self.embedder = embedder_of(model)

    @property
    def decode_size(self) -> tuple[int, int] | None:
        """As of the model's transform."""
        return self.model.transform.decode_size

    def shrink(self, pixels_B3HW: Tensor) -> Tensor:
        """Frames uint8 at the encoder's size: all that is kept of them until they are encoded."""
        return self.model.transform.resized(pixels_B3HW)

    @torch.inference_mode()
    def encode(self, pixels_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Features float32 [B,N,F] and vectors float32 [B,E], on the CPU, of shrunk frames."""
        model, parts = self.model, []
        for part in pixels_B3hw.split(self.batch):
            missing = self.batch - len(part)
            padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else part
            pictures = model.transform.normalised(padded.to(model.device)).to(model.dtype)
            features, vectors = self._look(pictures)
            kept = slice(len(part))
            parts.append((features[kept].float().cpu(), vectors[kept].float().cpu()))
        features, vectors = (torch.cat(piece) for piece in zip(*parts, strict=True))
        return features, vectors

    def _look(self, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(self.embedder, ClipEmbedder):
            return self.embedder.look(pictures_B3HW)
        features_BNF = self.model.flamingo.encode(pictures_B3HW)
        return features_BNF, self.embedder.frames(features_BNF)

    def provenance(self, sampling: str, dtype: str = "float16") -> Provenance:
        """What features by this encoder are, of frames that were chosen so."""
        black = torch.zeros(1, 3, *self.model.transform.size, device=self.model.device)
        with torch.inference_mode():  # one picture, not a batch: only shapes are wanted
            features, _ = self._look(black.to(self.model.dtype))
        return provenance_of(
            self.model,
            sampling,
            patches=features.shape[1],
            width=features.shape[2],
            dtype=dtype,
            embedder=self.embedder,
        )
