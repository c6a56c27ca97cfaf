"""Media that a prompt passes on its way to the last: only tokens of the prompt ever see them.

Of 32 examples in front of a question none is seen by what is written behind it. Where few tokens
stand behind each, they read its latents as they are, without keys and values: less work than to
make those, and no memory for them.

Legend: B batch, S tokens, M media, L latents of each, D their width, I inner width of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flamvid.models.few import linear_parts
from flamvid.models.int8 import Int8Linear
from flamvid.models.linear import Linear
from flamvid.ops import LATENT_STEP, implementation, latent_attention

__all__ = ["PassedMedia", "PassedWeights"]

# Tokens for each latent. At 0.5 it is as much work as keys and values, which are made the quicker.
_MOST = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class PassedMedia:
    """The latents of a prompt's first media."""

    latents: Tensor  # M x L x D
    _kept: list[Tensor] = field(default_factory=list)

    @property
    def turned(self) -> Tensor:
        """The same, [M,D,L], made once for all layers."""
        if not self._kept:
            self._kept.append(self.latents.mT.contiguous())
        return self._kept[0]

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
            type(index_BS) is Tensor  # no stand-in of a trace, which has no values
            and B == index_BS.shape[0] == 1
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
        return cls(latents_BMLD[0, :last].contiguous())


@dataclass(frozen=True, slots=True, eq=False)
class PassedWeights:
    """Such media, and a layer's weights for their keys and values."""

    media: PassedMedia
    to_kv: Linear | Int8Linear

    @classmethod
    def of(cls, media: PassedMedia, to_kv: nn.Module, heads: int) -> PassedWeights | None:
        """None where calling the layer would do anything but multiply, and so must be called."""
        if linear_parts(to_kv) is None:
            return None
        assert isinstance(to_kv, Linear | Int8Linear)
        parts = to_kv.int8 if isinstance(to_kv, Int8Linear) else None
        weight = to_kv.weight if isinstance(to_kv, Linear) else parts and parts.weight
        fits = weight is not None and weight.shape[0] % (2 * heads * LATENT_STEP) == 0
        return cls(media, to_kv) if fits else None

    def read_by(self, q_BSI: Tensor, index_BS: Tensor, heads: int) -> Tensor:
        """What each query takes of the media its index names, [B,S,I]; 0 where that isn't one."""
        index_X = index_BS.flatten()
        index_X = torch.where(index_X < self.media.count, index_X, -1)
        q_XI = q_BSI.flatten(0, 1)
        to_kv = self.to_kv
        weight = to_kv.rows() if isinstance(to_kv, Int8Linear) else to_kv.weight
        to_keys_ID, to_values_ID = weight.chunk(2)
        out_XI: Tensor = latent_attention(
            q_XI,
            self.media.latents,
            self.media.turned,
            to_keys_ID,
            to_values_ID,
            index_X,
            heads,
            (q_XI.shape[1] // heads) ** -0.5,
        )
        return out_XI.view_as(q_BSI)
