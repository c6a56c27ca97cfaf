"""What a Perceiver Resampler reads of a frame, kept: most of it does not depend on the slot.

A frame's keys and values are W LN(p + t): p its projected features, t the time embedding of its
slot. A frame of a stream moves from slot to slot as others come, and t changes with it. But
LN(p + t) is (p' + t') / s in its gain and bias, where ' takes the mean away and s is the standard
deviation of the sum. So W p' is worked out once per frame. Moving it to another slot then takes
one addition and one scale, which has the covariance of p and t in it: about a fortieth of the work.

Legend: N patches of one frame, X patches of all frames, T frames, L latents, D width, C keys and
values of all heads, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flamvid.models.resampler import PerceiverResampler, ResamplerBlock
from flamvid.ops import attention, linear

__all__ = ["FrameKeys", "KeyReader"]


@dataclass(frozen=True, slots=True, eq=False)
class FrameKeys:
    """Of one frame: `media` projected and centred, its variance, and the products W p'."""

    media: Tensor  # N x D
    variance: Tensor  # N
    products: tuple[Tensor, ...]  # N x C of each block

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return sum(t.nbytes for t in (self.media, self.variance, *self.products))


class KeyReader:
    """Makes latents of frames whose keys were worked out before. Of a resampler of kind perceiver.

    Equal to the resampler's own forward but for rounding.
    """

    def __init__(self, resampler: PerceiverResampler) -> None:
        self.resampler = resampler
        self._blocks = [b for b in resampler.blocks if isinstance(b, ResamplerBlock)]
        with torch.no_grad():  # the norm's gain and bias go into the weights, once
            self._weights_CD = [b.to_kv.weight * b.norm_media.weight for b in self._blocks]
            self._bias_C = [b.to_kv(b.norm_media.bias) for b in self._blocks]

    @staticmethod
    def serves(resampler: nn.Module) -> bool:
        """Whether there are keys to keep: the ablations mix frames with latents at once.

        Nor where a library has quantised the weights, whose products are its own affair.
        """
        return (
            isinstance(resampler, PerceiverResampler)
            and resampler.config.kind == "perceiver"
            and all(type(b.to_kv.weight) is nn.Parameter for b in resampler.blocks)  # type: ignore[union-attr]
        )

    def nbytes(self, patches: int, dtype: torch.dtype) -> int:
        """How much memory the keys of a frame of so many patches take."""
        config = self.resampler.config
        kept = config.width + 1 + config.depth * 2 * config.heads * config.head_width
        return patches * kept * dtype.itemsize

    @torch.inference_mode()
    def keys(self, features_NF: Tensor) -> FrameKeys:
        """What is kept of a frame."""
        media_ND = self.resampler._embed(features_NF, None)
        media_ND = media_ND - media_ND.mean(-1, keepdim=True)
        variance_N = media_ND.square().mean(-1)
        return FrameKeys(media_ND, variance_N, tuple(linear(media_ND, w) for w in self._weights_CD))

    @torch.inference_mode()
    def latents(self, frames: Sequence[FrameKeys]) -> Tensor:
        """Latents [1,L,D] of frames in the slots 0 to T - 1."""
        counts = torch.tensor([len(frame.media) for frame in frames])
        time_TD = self._times(len(frames))
        of_X = torch.repeat_interleave(torch.arange(len(frames)), counts).to(time_TD.device)
        covariance_X = (
            torch.cat([frame.media @ t for frame, t in zip(frames, time_TD, strict=True)])
            / time_TD.shape[1]
        )
        own_X = torch.cat([frame.variance for frame in frames])
        variance_X = own_X + time_TD.square().mean(-1)[of_X] + 2 * covariance_X

        latents = self.resampler.latents[None]
        for place, block in enumerate(self._blocks):
            weight_CD, bias_C = self._weights_CD[place], self._bias_C[place]
            kv_XC = torch.cat([frame.products[place] for frame in frames])
            kv_XC += (time_TD @ weight_CD.t())[of_X]
            kv_XC *= (variance_X + block.norm_media.eps).rsqrt()[:, None]
            latents = _attend(block, latents, kv_XC.add_(bias_C))
        out: Tensor = self.resampler.out(self.resampler.norm(latents))
        return out

    def _times(self, frames: int) -> Tensor:
        """What is added to all patches of each frame, without its mean, [T,D]."""
        latents = self.resampler.latents
        added = latents.new_zeros(frames, latents.shape[1])
        if self.resampler.time is not None:
            added = added + self.resampler.time(frames)
        if self.resampler.place is not None:  # a stream is the first media of its text
            added = added + self.resampler.place.weight[0]
        return added - added.mean(-1, keepdim=True)


def _attend(block: ResamplerBlock, latents_1LD: Tensor, kv_XC: Tensor) -> Tensor:
    """A block's forward, with keys and values of the media in hand."""
    latents = block.norm_latents(latents_1LD)
    q = block._split(block.to_q(latents))
    kv = torch.cat([kv_XC[None], block.to_kv(latents)], dim=1)  # 1 x (X + L) x C
    k, v = (block._split(x) for x in kv.chunk(2, dim=-1))
    attended = attention(block.norm_q(q), block.norm_k(k), v).transpose(1, 2)  # 1 x L x H x d
    latents_1LD = latents_1LD + block.to_out(attended.flatten(2))
    out: Tensor = latents_1LD + block.ffw(latents_1LD)
    return out
