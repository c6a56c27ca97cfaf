"""Samples held in memory, drawn for updates that follow from nothing but their number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from flamvid.data.order import unchanged
from flamvid.errors import ConfigError
from flamvid.train.objective import no_loss
from flamvid.train.world import World

__all__ = ["Chance", "Drawn", "Inputs", "MeanLoss", "rows_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a module takes for some samples, whose mean loss is over `scored` terms."""

    corpus: str
    keys: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    scored: int


class MeanLoss(nn.Module):
    """The objective of a module whose `forward` gives the mean loss of what `Inputs` hold."""

    def __init__(self, module: nn.Module, trained: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.module, self._trained = module, tuple(trained)

    def forward(self, inputs: Inputs | None) -> Tensor:
        """The loss summed over its terms; see `Parallel` for None."""
        if inputs is None:
            return no_loss(self.trained())
        loss: Tensor = self.module(*inputs.tensors) * inputs.scored
        return loss

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained."""
        yield from self._trained


class Chance:
    """Randomness of an update, which is the same however many processes share its samples.

    Each of `size` processes has the samples `rank`, `rank + size` and so on.
    """

    def __init__(self, seed: str, rank: int = 0, size: int = 1) -> None:
        self.seed, self.rank, self.size = seed, rank, size

    def shared(self) -> random.Random:
        """For what all samples have in common."""
        return random.Random(self.seed)

    def each(self, count: int) -> list[random.Random]:
        """One for each of the first `count` samples of this process."""
        return [random.Random(f"{self.seed} {self.rank + self.size * n}") for n in range(count)]


class Drawn:
    """Endless updates of one batch each.

    batch: samples of an update, of all processes together. make: this process's part of update
    number so many. samples: of each kind, whose number decides which is drawn when.
    """

    def __init__(
        self,
        make: Callable[[int, Chance], Inputs],
        batch: int,
        seed: int,
        world: World,
        samples: Sequence[int] = (),
    ) -> None:
        if batch < world.size:
            raise ConfigError(
                f"batch is {batch} for {world.size} processes; each needs a sample of every update"
            )
        self.make, self.seed, self.world = make, seed, world
        self._about = {"batch": batch, "seed": seed, "samples": list(samples)}
        self._done = 0

    def __next__(self) -> tuple[Inputs]:
        at, self._done = self._done, self._done + 1
        return (self.make(at, Chance(f"{self.seed} {at}", self.world.rank, self.world.size)),)

    def state_dict(self) -> dict[str, Any]:
        """How many updates it has given, and what decides which samples those had."""
        return {"updates": self._done, "data": self._about}

    def resume(self, places: Sequence[Mapping[str, Any]]) -> None:
        """Go on where a snapshot was; a ConfigError where samples would be drawn in another way."""
        unchanged(places[0].get("data", self._about), self._about)
        self._done = int(places[0]["updates"])


def rows_of(step: int, batch: int, size: int, seed: int | str) -> list[int]:
    """Samples of an update: every one once an epoch, in an order of the seed and the epoch."""
    places = (divmod(at, size) for at in range(step * batch, (step + 1) * batch))
    return [_order(size, f"{seed} {epoch}")[at] for epoch, at in places]


@lru_cache(maxsize=4)
def _order(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
