"""One update of the weights, from a batch of each corpus or from one batch alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from flamvid.data.collate import Batch
from flamvid.train.parallel import Parallel

__all__ = ["Updated", "Updater"]


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

    weights: of each corpus, lambda in the paper's section 2.4. Several batches of a corpus count
    as one of their size: a corpus's loss is the mean over all its scored tokens in all processes.
    """

    def __init__(
        self,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, float],
        clip: float,
    ) -> None:
        self.parallel, self.optimizer = parallel, optimizer
        self.weights, self.clip = weights, clip

    def __call__(self, batches: Sequence[Batch]) -> Updated:
        world = self.parallel.world
        corpora = list(self.weights)
        here: dict[str, float] = defaultdict(float)
        for batch in batches:
            here[batch.corpus] += int((batch.targets >= 0).sum())
        tokens = dict(zip(corpora, world.sum([here[c] for c in corpora]), strict=True))

        losses: dict[str, float] = defaultdict(float)
        counted: dict[str, float] = defaultdict(float)
        skipped: set[str] = set()
        for batch in batches:
            corpus = batch.corpus
            loss = self.parallel(batch)
            # All processes leave a batch out together, or their gradients would not match.
            if world.any(not bool(loss.isfinite())):
                skipped.add(corpus)
                self.parallel.leave_out()
                continue
            share = self.weights[corpus] * world.size / max(tokens[corpus], 1.0)
            self.parallel.backward(loss * share)
            losses[corpus] += loss.item()
            counted[corpus] += int((batch.targets >= 0).sum())

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
