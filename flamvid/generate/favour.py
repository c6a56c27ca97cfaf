"""Words that a text should rather say: known to be shown, though the model might not come to them.

A text gains when it says such a word, once, so that the best text is that of what the model finds
likely and of what is known together: a soft form of constrained beam search for novel objects
(Anderson et al. 2017, arXiv 1612.00576).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flamvid.weights.load import LoadedModel

__all__ = ["Favour", "Favoured", "favour", "favours_of"]


@dataclass(frozen=True, slots=True)
class Favour:
    """The tokens of a word, and what saying it is worth, in nats."""

    tokens: tuple[int, ...]
    worth: float


def favours_of(model: LoadedModel, labels: Mapping[str, float]) -> list[Favour]:
    """What a model's encoder is sure of, as words that a caption should rather say."""
    look, encode = model.config.vision, model.prompts.within
    return [
        Favour(tuple(encode(word)), look.label_worth * (share - look.label_sure))
        for word, share in labels.items()
        if look.label_worth and share > look.label_sure
    ]


@dataclass(frozen=True, slots=True)
class Favoured:
    """How far a text is in each word that it should rather say, and what it has gained by them."""

    favours: tuple[Favour, ...]
    places: tuple[int, ...]  # of each: tokens said of it; all of them once it was said
    gained: float = 0.0

    @classmethod
    def at_start(cls, favours: Sequence[Favour]) -> Favoured:
        """Before the first token."""
        return cls(tuple(favours), (0,) * len(favours))

    def gains(self) -> list[tuple[int | None, float]]:
        """What the next token gains: by its id, or (None) whatever it is."""
        out: list[tuple[int | None, float]] = []
        for word, place in zip(self.favours, self.places, strict=True):
            if place == 0:
                out.append((word.tokens[0], word.worth))
            elif place < len(word.tokens):  # what the first token gained, another word gives back
                out.append((None, -word.worth))
                out.append((word.tokens[place], word.worth))
                if word.tokens[place] != word.tokens[0]:
                    out.append((word.tokens[0], word.worth))  # or it begins anew
        return out

    def after(self, token: int) -> Favoured:
        """The text with one more token."""
        if not self.favours:
            return self
        places, gained = [], self.gained
        for word, place in zip(self.favours, self.places, strict=True):
            if place == len(word.tokens):
                places.append(place)
                continue
            if token == word.tokens[place]:
                gained += word.worth if place == 0 else 0.0
                places.append(place + 1)
                continue
            gained -= word.worth if place else 0.0
            again = token == word.tokens[0]
            gained += word.worth if place and again else 0.0
            places.append(1 if place and again else 0)
        return Favoured(self.favours, tuple(places), gained)


def favour(logprobs_RV: Tensor, texts: Sequence[Favoured]) -> Tensor:
    """Log-probabilities with what each token gains a row's text."""
    if not any(text.favours for text in texts):
        return logprobs_RV
    out = logprobs_RV.clone()
    for row, text in enumerate(texts):
        for token, worth in text.gains():
            if token is None:
                out[row] += worth
            else:
                out[row, token] += worth
    return out
