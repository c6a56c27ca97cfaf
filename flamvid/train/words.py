"""The word stage: teach the resampler alone to name what is there.

A cross-attention that starts with a resampler of noise learns to ignore it. So the mean latent
first predicts the frequent words of the captions (target: the share of captions with the word),
which takes minutes and no language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.resampler import PerceiverResampler

__all__ = ["WordModel", "frequent_words", "word_targets"]


class WordModel(nn.Module):
    """The resampler with a linear layer on its mean latent."""

    def __init__(self, resampler: PerceiverResampler, words: int) -> None:
        super().__init__()
        self.resampler = resampler
        self.head = nn.Linear(resampler.config.latent_width, words)
        nn.init.constant_(self.head.bias, -4.0)  # most words are absent

    def forward(self, features_BTNF: Tensor, frame_counts: Tensor, targets_BW: Tensor) -> Tensor:
        """Mean over media of the binary cross-entropy, summed over words."""
        latents_BLD = self.resampler(features_BTNF, frame_counts)
        logits_BW = self.head(latents_BLD.mean(dim=1))
        loss = F.binary_cross_entropy_with_logits(logits_BW, targets_BW, reduction="sum")
        return loss / features_BTNF.shape[0]


def frequent_words(captions: Sequence[Sequence[str]], count: int) -> list[str]:
    """The `count` words that most media have in a caption, most frequent first."""
    media: Counter[str] = Counter()
    for group in captions:
        media.update({word for caption in group for word in caption.lower().split()})
    ordered = sorted(media, key=lambda word: (-media[word], word))
    return ordered[:count]


def word_targets(captions: Sequence[Sequence[str]], words: Sequence[str]) -> Tensor:
    """Float [media, words]: the share of a media's captions that have the word."""
    column = {word: i for i, word in enumerate(words)}
    out = torch.zeros(len(captions), len(words))
    for row, group in enumerate(captions):
        for caption in group:
            for word in {w for w in caption.lower().split() if w in column}:
                out[row, column[word]] += 1 / len(group)
    return out
