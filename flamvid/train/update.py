"""One update of the weights, from a batch of each corpus or from one batch alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from flamvid.train.parallel import Parallel

__all__ = ["Samples", "Updated", "Updater"]


class Samples(Protocol):
    """A batch of one corpus, whatever is in it; `scored`: how many terms its loss is a sum of."""

    @property
    def corpus(self) -> str: ...

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def scored(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update did: mean loss per token of each corpus, and the norm of the gradient.

    skipped: corpora that had a loss which is no number, and so no part in the update. applied:
    false where the gradient itself was none, and the weights are as they were.
    """

    losses: Mapping[str, float]
    norm: float
    skipped: tuple[str, ...] = ()
    applied: bool = True
    tokens: Mapping[str, int] = field(default_factory=dict)


class Updater:
    """Sums the weighted gradients of batches, clips them once, and steps the optimizer.

    parts: those of a batch that go through the model one after the other.
    weights: of each corpus, lambda in the paper's section 2.4. Several batches of a corpus count
    as one of their size: a corpus's loss is the mean over all its scored tokens in all processes.
    """

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, float],
        clip: float,
        parts: Callable[[Any], Sequence[Samples]] = lambda batch: (batch,),
    ) -> None:
        self.parallel, self.optimizer = parallel, optimizer
        self.weights, self.clip = weights, clip
        self.parts = parts

    def __call__(self, batches: Sequence[Samples]) -> Updated:
        """Update on batches; those of a corpus with a loss that is no number have no part in it."""
        skipped: tuple[str, ...] = ()
        while isinstance(done := self._update(batches, skipped), str):
            skipped = (*skipped, done)  # rare: the gradients of the others are computed again
        return done

    def _update(self, batches: Sequence[Samples], skipped: tuple[str, ...]) -> Updated | str:
        """The update, or a corpus that makes it impossible; then the weights are as they were."""
        world = self.parallel.world
        corpora = list(self.weights)
        here: dict[str, float] = defaultdict(float)
        for batch in batches:
            here[batch.corpus] += batch.scored
        tokens = dict(zip(corpora, world.sum([here[c] for c in corpora]), strict=True))

        losses: dict[str, float] = defaultdict(float)
        counted: dict[str, float] = defaultdict(float)
        for batch in batches:
            corpus = batch.corpus
            if corpus in skipped:
                continue
            share = self.weights[corpus] * world.size / max(tokens[corpus], 1.0)
            for part in self._parts(batch):
                loss = None if part is None else self.parallel(part)
                # All processes leave it out together, or their gradients would not match.
                if world.any(loss is not None and not bool(loss.isfinite())):
                    self.parallel.leave_out()
                    self.optimizer.zero_grad(set_to_none=True)
                    return corpus
                if loss is not None and part is not None:
                    self.parallel.backward(loss * share)
                    losses[corpus] += loss.item()
                    counted[corpus] += part.scored

        norm = self.parallel.finish(self.clip)
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        summed = world.sum([x[c] for x in (losses, counted) for c in corpora])
        total, count = summed[: len(corpora)], summed[len(corpora) :]
        means = {c: a / n for c, a, n in zip(corpora, total, count, strict=True) if n}
        seen = {c: int(n) for c, n in tokens.items() if n}
        return Updated(means, norm, tuple(sorted(skipped)), applied, seen)

    def _parts(self, batch: Samples) -> list[Samples | None]:
        """As many parts as in the process that has most; None where this one has no more."""
        parts: list[Samples | None] = [*self.parts(batch)]
        return parts + [None] * (self.parallel.world.most(len(parts)) - len(parts))
