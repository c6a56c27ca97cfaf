"""Flamingo: frames to features, latents, and a frozen language model that reads them.

Legend: B batch, M media, T frames, N patches, F feature width, L latents, S tokens, D widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.models.encoder import VisionEncoder
from flamvid.models.gated_xattn import GatedCrossAttention, MediaKeyValues, XattnConfig
from flamvid.models.graft import GraftedLayer
from flamvid.models.idefics import IdeficsCrossAttention
from flamvid.models.linear import quicken
from flamvid.models.lm import LanguageModel, MediaContext, decoder_layers
from flamvid.models.passed_media import PassedMedia
from flamvid.models.pretrained import Pretrained
from flamvid.models.resampler import PerceiverResampler

__all__ = ["Flamingo"]


class Flamingo(nn.Module, Pretrained):
    """The paper's figure 3. Vision and language model are frozen; the rest is trained.

    lm_state: "unfrozen" or "scratch" in the ablations that train the language model too.
    """

    def __init__(
        self,
        vision: VisionEncoder,
        resampler: PerceiverResampler,
        lm: Any,
        xattn: XattnConfig,
        lm_state: str = "frozen",
    ) -> None:
        super().__init__()
        width: int = lm.config.hidden_size
        latent_width = resampler.config.latent_width
        self.xattn_config = xattn
        self.vision = vision.requires_grad_(False)
        self.resampler = resampler
        kind = IdeficsCrossAttention if xattn.style == "idefics" else GatedCrossAttention
        self.lm = LanguageModel(
            lm,
            {
                at: kind(xattn, width, latent_width)
                for at in xattn.positions(len(decoder_layers(lm)))
            },
            after=xattn.after,
            grafted=[GraftedLayer(xattn, width, latent_width) for _ in range(xattn.grafted)],
            frozen=lm_state == "frozen",
        )
        quicken(self)

    def train(self, mode: bool = True) -> Flamingo:
        """Train the new parts; the frozen ones stay in evaluation mode (batch norms too)."""
        super().train(mode)
        self.vision.eval()
        return self

    def encode(self, pictures_X3HW: Tensor) -> Tensor:
        """Features [X,N,F] of any number X of pictures; without gradients if vision is frozen.

        By a video encoder, pictures are those of one media in order, and features [T,N,F].
        """
        learns = any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            features: Tensor = self.vision(pictures_X3HW)
        return features

    def resample(self, features_BMTNF: Tensor, frame_counts_BM: Tensor | None = None) -> Tensor:
        """Latents [B,M,L,D] of each media, whatever its number of frames."""
        B, M = features_BMTNF.shape[:2]
        counts = None if frame_counts_BM is None else frame_counts_BM.flatten()
        places = torch.arange(M).repeat(B)
        latents: Tensor = self.resampler(features_BMTNF.flatten(0, 1), counts, places)
        return latents.view(B, M, *latents.shape[1:])

    def read(
        self, latents_BMLD: Tensor, index_BS: Tensor, known: Sequence[MediaKeyValues] = ()
    ) -> MediaContext:
        """The media as the inserted layers want them; in decoding, made once and kept.

        index_BS: of the tokens that are to be read with them. Those that follow see what the last
        of these sees, or later media. known: what each layer has of media before these.
        """
        passed = None if known else PassedMedia.of(latents_BMLD, index_BS)
        xattns = (x for x in self.lm.inserted if isinstance(x, GatedCrossAttention))
        pairs = zip_longest(xattns, known)
        return MediaContext(tuple(x.read(latents_BMLD, has, passed) for x, has in pairs), index_BS)

    def forward(
        self,
        features_BMTNF: Tensor,
        input_ids: Tensor,
        index_BS: Tensor,
        attention_mask: Tensor | None = None,
        frame_counts_BM: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,S,V] of a text in which token s sees the media `index_BS` names."""
        latents_BMLD = self.resample(features_BMTNF, frame_counts_BM)
        media = self.read(latents_BMLD, index_BS)
        hidden_BSD = self.lm(input_ids, media, attention_mask)
        logits: Tensor = self.lm.head(hidden_BSD)
        return logits

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what we train.

        Resampler, cross-attention and the rows of new tokens; of LM and vision what is not frozen.
        """
        for name, parameter in self.resampler.named_parameters():
            yield f"resampler.{name}", parameter
        for name, parameter in self.lm.inserted.named_parameters():
            yield f"xattn.{name}", parameter
        for prefix, part in (
            ("tokens", self.lm.tokens),
            ("lm", self.lm.lm),
            ("vision", self.vision),
        ):
            for name, parameter in part.named_parameters() if part else ():
                if parameter.requires_grad:
                    yield f"{prefix}.{name}", parameter
