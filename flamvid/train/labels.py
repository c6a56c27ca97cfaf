"""Labels in the prompts of training: left out at times, so that the media are looked at as well,
and swapped at times, so that a label is read and not merely recognised.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flamvid.data.features import FeatureSet
from flamvid.models.labels import Labels
from flamvid.models.vision import TimmEncoder

__all__ = ["LabelNoise", "label_media", "swap"]

_FRAMES = 256  # whose features are averaged together


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNoise:
    """How labels are varied, as probabilities.

    drop: of each label to be left out; drop_all: of all together. swap: that a label which the
    caption has too is another thing's name in both: "a man plays the guitar" becomes "a man plays
    the wok" beside the label "wok". What a video shows can't tell such a word, so the model learns
    to take it from the label, and does so for things that no caption ever named.
    """

    drop: float = 0.2
    drop_all: float = 0.15
    swap: float = 0.3

    def __call__(
        self, labels: Sequence[str], caption: str, words: Sequence[str], rng: random.Random
    ) -> tuple[tuple[str, ...], str]:
        """Labels and caption as one update sees them; `words` are all names there are."""
        if rng.random() < self.drop_all:
            return (), caption
        kept = tuple(label for label in labels if rng.random() >= self.drop)
        said = [label for label in kept if re.search(rf"\b{re.escape(label)}\b", caption)]
        if not said or rng.random() >= self.swap:
            return kept, caption
        old, new = rng.choice(said), rng.choice(words)
        return tuple(new if label == old else label for label in kept), swap(caption, old, new)


def swap(caption: str, old: str, new: str) -> str:
    """The caption with the words `old` replaced, and the article in front of them set right."""
    article = "an" if new[0] in "aeiou" else "a"
    caption = re.sub(rf"\ban? {re.escape(old)}\b", f"{article} {new}", caption)
    return re.sub(rf"\b{re.escape(old)}\b", new, caption)


@torch.no_grad()
def label_media(media: FeatureSet, encoder: TimmEncoder, labels: Labels) -> list[tuple[str, ...]]:
    """The labels of each sample, of all its frames and patches."""
    logits = [_logits(features_XNF, encoder) for features_XNF in media.shards]
    return [labels(logits[shard][first : first + count]) for shard, first, count in media.places]


def _logits(features_XNF: Tensor, encoder: TimmEncoder) -> Tensor:
    return torch.cat([encoder.classify(part.float()) for part in features_XNF.split(_FRAMES)])
