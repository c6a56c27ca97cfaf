"""A source that was looked at, and what can be done with it without looking again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from flamvid.types import Segment

__all__ = ["Example", "Seen", "Source"]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A source that was looked at once, to be captioned and questioned as often as one likes.

    latents: [1,L,D], all that the language model reads of it. labels: what its prompt says
    that is shown, and how surely.
    """

    source: str
    segment: Segment
    latents: Tensor
    labels: Mapping[str, float]


Source = str | PathLike[str] | Seen


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A shot that was looked at: `text` is its caption, or the answer to `question`."""

    seen: Seen
    text: str
    question: str = ""
