"""What a corpus gives: documents, texts in which media stand. A captioned clip is a short document.

Legend: T frames, N patches, F feature width.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Document", "Look", "Media", "Part", "Unread", "sound"]


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """A picture or a clip as `frames` uint8 [T,3,H,W], or as `features` [T,N,F]; `pts` seconds [T].

    A picture is a clip of one frame. Frames of one media agree in size, those of two need not.
    """

    pts: NDArray[np.float64]
    frames: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pts)

    def __repr__(self) -> str:
        held = self.frames if self.features is None else self.features
        return f"Media({None if held is None else tuple(held.shape)})"


@dataclass(frozen=True, slots=True)
class Look:
    """How a media is looked at: `frames` frames at `fps`, from a place in it that `rng` draws.

    rng: None looks at the middle, as in validation.
    """

    frames: int = 8
    fps: float = 1.0
    rng: random.Random | None = None


def sound(text: str) -> str:
    """The text without the half characters that JSON may hold, which nothing can encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Unread = Callable[[Look], Media]
"""A media that is decoded only when it is known to be wanted."""

Part = str | Media | Unread


@dataclass(frozen=True, slots=True)
class Document:
    """Texts and media in the order of the page.

    A pair is `(media, text)`; `texts` are what else may stand for the text, such as the other
    captions of a clip. missing: images of a page that were not obtained, and are left out. Raises
    nothing until its media are read.
    """

    id: str
    parts: tuple[Part, ...]
    texts: tuple[str, ...] = ()
    missing: int = 0

    def __post_init__(self) -> None:
        parts = tuple(sound(part) if isinstance(part, str) else part for part in self.parts)
        object.__setattr__(self, "id", sound(self.id))
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "texts", tuple(map(sound, self.texts)))

    @property
    def is_pair(self) -> bool:
        """Whether this is one media with what is said of it."""
        return bool(self.texts)
