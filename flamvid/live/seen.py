"""A source that was looked at, and what can be done with it without looking again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from flamvid.generate.memory import PromptMemory
from flamvid.types import Segment

__all__ = ["Example", "Examples", "Seen", "Source", "memory_of"]


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


class Examples(list[Example]):
    """Shots that were looked at. What the model made of them is kept here, once they were used.

    How large that is, `PromptMemory` says; it goes when this list goes.
    """

    def __init__(self, shots: Iterable[Example] = ()) -> None:
        super().__init__(shots)
        self.memory = PromptMemory()


def memory_of(shots: Sequence[Example]) -> PromptMemory | None:
    """That of the examples; of other shots a new one, and none without shots."""
    if not shots:
        return None
    return shots.memory if isinstance(shots, Examples) else PromptMemory()
