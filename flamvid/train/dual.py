"""Two heads on frozen parts, and what they are trained on.

Legend: X frames of a batch, B samples, F feature width, D width of a text's states, C classes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.contrastive import DualHead

__all__ = ["HeadModule", "HeadPairs", "missed"]


class HeadPairs:
    """Frozen features and states of samples, pooled once: a run on them takes minutes.

    pooled_XF, logits_XC: of all frames; places: first frame and number of frames of each sample;
    states_KD: of all captions; texts: first caption and number of captions of each sample.
    """

    def __init__(
        self,
        pooled_XF: Tensor,
        logits_XC: Tensor,
        places: Sequence[tuple[int, int]],
        states_KD: Tensor,
        texts: Sequence[tuple[int, int]],
    ) -> None:
        self.pooled_XF, self.logits_XC, self.states_KD = pooled_XF, logits_XC, states_KD
        self.places, self.texts = tuple(places), tuple(texts)

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, rows: Sequence[int], rngs: Sequence[random.Random]) -> tuple[Tensor, ...]:
        """Mean features [X,F] and logits [X,C] of some frames of each sample, how many each has
        [B], and the states of one of its captions [B,D].
        """
        frames: list[int] = []
        counts: list[int] = []
        captions: list[int] = []
        for row, rng in zip(rows, rngs, strict=True):
            first, count = self.places[row]
            kept = rng.randint((count + 1) // 2, count)  # as no two looks at a video are alike
            frames += rng.sample(range(first, first + count), kept)
            counts.append(kept)
            start, held = self.texts[row]
            captions.append(start + rng.randrange(held))
        return (
            self.pooled_XF[frames],
            self.logits_XC[frames],
            torch.tensor(counts),
            self.states_KD[captions],
        )


class HeadModule(nn.Module):
    """The two heads alone."""

    def __init__(self, head: DualHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, pooled_XF: Tensor, logits_XC: Tensor, counts_B: Tensor, states_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of length 1 of videos and texts, both [B,E], and the heat."""
        classes_CE = self.head.classes() if self.head.config.classes else None
        vectors_XE = self.head.frames(pooled_XF, logits_XC, classes_CE)
        videos = torch.stack([part.mean(0) for part in vectors_XE.split(counts_B.tolist())])
        return F.normalize(videos, dim=-1), self.head.texts(states_BD), self.head.heat()


@torch.no_grad()
def missed(videos_VE: Tensor, texts_KE: Tensor, own_K: Tensor) -> dict[str, float]:
    """The share of texts that don't find their video first, and among the first 5 and 10."""
    alike_KV = texts_KE @ videos_VE.T
    better_K = (alike_KV > alike_KV.gather(1, own_K[:, None])).sum(1)
    return {f"missed@{most}": float((better_K >= most).float().mean()) for most in (1, 5, 10)}
