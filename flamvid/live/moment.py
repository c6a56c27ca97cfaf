"""What is kept of a frame of a stream, or of several that became one.

Legend: N patches, F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.models.resampler_keys import FrameKeys

__all__ = ["Moment", "joined", "seen", "similarity"]


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Features [N,F] of what was shown from `start` to `end`, in seconds of the stream.

    time: when it was looked at; the mean where it is of several frames. frames: how many. mean:
    over the patches, [F], also of those that were let go since. keys: what the resampler reads of
    it, where that is worked out already.
    """

    features: Tensor  # N x F
    mean: Tensor  # F
    time: float
    start: float
    end: float
    frames: int = 1
    keys: FrameKeys | None = None

    @property
    def nbytes(self) -> int:
        """How much memory its tensors take."""
        keys = 0 if self.keys is None else self.keys.nbytes
        return self.features.nbytes + self.mean.nbytes + keys


def seen(features_NF: Tensor, time: float, start: float, end: float) -> Moment:
    """One frame that was just looked at."""
    return Moment(features_NF, features_NF.mean(0), time, start, end)


def joined(moments: Sequence[Moment]) -> Moment:
    """One moment for all: means weighted by how many frames each is of."""
    total = sum(m.frames for m in moments)
    shares = [m.frames / total for m in moments]
    features_NF = torch.zeros_like(moments[0].features)
    mean_F = torch.zeros_like(moments[0].mean)
    for moment, share in zip(moments, shares, strict=True):
        features_NF.add_(moment.features, alpha=share)
        mean_F.add_(moment.mean, alpha=share)
    return Moment(
        features_NF,
        mean_F,
        sum(m.time * share for m, share in zip(moments, shares, strict=True)),
        min(m.start for m in moments),
        max(m.end for m in moments),
        total,
    )


def without(moment: Moment, kept_N: Tensor) -> Moment:
    """The same with only some of its patches."""
    return replace(moment, features=moment.features[kept_N].clone(), keys=None)


def similarity(one_F: Tensor, other_F: Tensor) -> float:
    """The cosine of two mean features."""
    return float(F.cosine_similarity(one_F.float(), other_F.float(), dim=-1))
