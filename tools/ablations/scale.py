"""How large the ablations are."""

from __future__ import annotations

from dataclasses import dataclass

from flamvid.errors import ConfigError

__all__ = ["Scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The budget of every row, and what of the data it sees. The same for all, or none compare.

    updates: each of so many videos, images and documents of `media` pictures each; round robin
    makes three of one. samples: of each shard that is trained on. held_out: videos that are scored.
    frames: of a video, spread evenly. grid: a frame's patches are means over grid x grid fields.
    tokens: of a caption. words: of what is generated. Corpora weigh the same, not as in the paper
    (1, 0.2, 0.2 and 0.03 for videos): the held-out set is of videos.
    """

    updates: int = 60
    videos: int = 4
    images: int = 4
    documents: int = 2
    media: int = 3
    samples: int = 400
    held_out: int = 244
    frames: int = 2
    grid: int = 3
    tokens: int = 20
    words: int = 14
    learning_rate: float = 1e-3
    gate_learning_rate: float = 3e-2
    warmup: int = 10

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; must be above 0")
        if self.warmup >= self.updates:  # a row would end before it learns at its rate
            raise ConfigError(
                f"warmup is {self.warmup}; must be below updates ({self.updates}); "
                "give another by --set warmup=N"
            )
