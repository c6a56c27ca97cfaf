"""Media that a prompt passes on its way to the last: only tokens of the prompt ever see them.

Of 32 examples in front of a question none is seen by what is written behind it. Where few tokens
stand behind each, they read its latents as they are, without keys and values: less work than to
make those, and no memory for them.

Legend: B batch, S tokens, M media, L latents of each, D their width, I inner width of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flamvid.models.few import linear_parts
from flamvid.models.int8 import Int8Linear
from flamvid.ops import LATENT_STEP, implementation, latent_attention

__all__ = ["PassedMedia", "PassedWeights"]

# Tokens for each latent. At 0.5 it is as much work as keys and values, which are made the quicker.
_MOST = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class PassedMedia:
    """The latents of a prompt's first media, as they are and turned."""

    latents: Tensor  # M x L x D
    turned: Tensor  # M x D x L

    @property
    def count(self) -> int:
        """How many media."""
        return self.latents.shape[0]

    @classmethod
    def of(cls, latents_BMLD: Tensor, index_BS: Tensor) -> PassedMedia | None:
        """Those before the media that the last token sees; None where it is no gain, or can't be.

        It is for one prompt in float32 on a CPU, without gradients.
        """
        B, M, L, D = latents_BMLD.shape
        wanted = (
            B == index_BS.shape[0] == 1
            and index_BS.shape[1] > 0
            and latents_BMLD.is_cpu
            and latents_BMLD.dtype == torch.float32
            and not (L % LATENT_STEP or D % LATENT_STEP)
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            and implementation("latent_attention").name == "kernel"
        )
        if not wanted:
            return None
        last = int(index_BS[0, -1])
        tokens = int((index_BS < last).sum())
        if not 0 < last < M or tokens > _MOST * last * L:
            return None
        latents_MLD = latents_BMLD[0, :last].contiguous()
        return cls(latents_MLD, latents_MLD.mT.contiguous())


@dataclass(frozen=True, slots=True, eq=False)
class PassedWeights:
    """Such media, and a layer's weights for their keys and values."""

    media: PassedMedia
    to_keys: Tensor  # I x D
    to_values: Tensor  # I x D

    @classmethod
    def of(cls, media: PassedMedia, to_kv: nn.Module, heads: int) -> PassedWeights | None:
        """None where calling the layer would do anything but multiply, and so must be called."""
        if linear_parts(to_kv) is None:
            return None
        weight = to_kv.rows() if isinstance(to_kv, Int8Linear) else to_kv.weight
        assert isinstance(weight, Tensor)
        to_keys, to_values = weight.detach().chunk(2)
        if to_keys.shape[0] % (heads * LATENT_STEP):
            return None
        return cls(media, to_keys, to_values)

    def read_by(self, q_BSI: Tensor, index_BS: Tensor, heads: int) -> Tensor:
        """What each query takes of the media its index names, [B,S,I]; 0 where that isn't one."""
        index_X = index_BS.flatten()
        index_X = torch.where(index_X < self.media.count, index_X, -1)
        q_XI = q_BSI.flatten(0, 1)
        out_XI: Tensor = latent_attention(
            q_XI,
            self.media.latents,
            self.media.turned,
            self.to_keys,
            self.to_values,
            index_X,
            heads,
            (q_XI.shape[1] // heads) ** -0.5,
        )
        return out_XI.view_as(q_BSI)
