"""Updates of several corpora, without an end, that go on after any of them as if never stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from multiprocessing import active_children
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from flamvid.data.collate import Bad, Batch, Row, collate, make_row
from flamvid.data.corpus import CorpusConfig
from flamvid.data.ledger import Ledger
from flamvid.data.order import Order, unchanged
from flamvid.data.sources import Samples, open_corpus
from flamvid.data.workers import Items, Told, begin_worker, end
from flamvid.errors import ConfigError, FlamvidError
from flamvid.text.prompt import PromptFormat

__all__ = ["Mixture"]

MIXING = ("accumulate", "round-robin")


class Mixture:
    """An endless iterator of updates, each a tuple of batches (Flamingo, section 2.4).

    mixing: "accumulate" gives a batch of every corpus in each update; "round-robin" one batch, of
    the corpora in turn. rank, world: this process gets its rows of each batch. workers: processes
    that read ahead; batches are the same for any number of them, and of processes together.
    ledger: a JSONL file of samples that can't be read. Each is left out once it is named there, and
    more than `max_bad` of a corpus end the run with a SourceError.
    augment: without it nothing is drawn: for validation. together: see `Ledger`'s `later`.
    Raises ConfigError, at once, for a source that does not exist.
    """

    def __init__(
        self,
        corpora: Sequence[CorpusConfig],
        prompts: PromptFormat,
        *,
        root: Path = Path(),
        seed: int = 0,
        mixing: str = "accumulate",
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        ledger: Path | None = None,
        augment: bool = True,
        together: bool = False,
    ) -> None:
        if mixing not in MIXING:
            raise ConfigError(f"mixing is {mixing!r}; must be one of {', '.join(MIXING)}")
        for corpus in corpora:
            if corpus.batch < world:
                raise ConfigError(
                    f"corpus {corpus.name}: batch is {corpus.batch} for {world} processes; "
                    "each needs a sample of every update"
                )
        self.corpora, self.mixing, self.seed, self.workers = tuple(corpora), mixing, seed, workers
        self._updates = _Updates(self.corpora, prompts, root, seed, mixing, rank, world, augment)
        self.ledger = Ledger(ledger, self.corpora, self.samples, later=together)
        self._done = 0
        self._ahead: Iterator[tuple[Batch, ...]] | None = None

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> tuple[Batch, ...]:
        if self._ahead is None:
            self._ahead = self._start()
        update = next(self._ahead)
        self._done += 1
        for batch in update:
            self.ledger.add(batch.corpus, batch.bad)
        return update

    @property
    def samples(self) -> dict[str, int]:
        """How many samples each corpus has: an epoch of it."""
        return {c.name: s.total for c, s in zip(self.corpora, self._updates.samples, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator is, for any number of processes; what was bad is that of this one."""
        return {"updates": self._done, "data": self._updates.about(), "bad": self.ledger.known}

    def resume(self, places: Sequence[Mapping[str, Any]]) -> None:
        """Go on where a snapshot was; each of its processes knows of its own bad samples."""
        bad: dict[str, list[str]] = {corpus.name: [] for corpus in self.corpora}
        for place in places:
            for corpus, names in place["bad"].items():
                known = bad.setdefault(corpus, [])
                known += [name for name in names if name not in known]
        self.load_state_dict({**places[0], "bad": bad})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a ConfigError where the data, or their order, are others."""
        unchanged(state["data"], self._updates.about())
        self.ledger.known = {name: list(ids) for name, ids in state["bad"].items()}
        self._done, self._ahead = int(state["updates"]), None

    def _start(self) -> Iterator[tuple[Batch, ...]]:
        """Updates from where it is, made here or by workers that read ahead."""
        if self.workers == 0:
            return map(self._updates.__getitem__, count(self._done))
        loader = DataLoader(
            Told(self._updates),
            batch_size=None,
            sampler=_Endless(self._done),
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            # Or it would take a number from the process's own, and a resumed run draw others.
            generator=torch.Generator(),
        )
        others = set(active_children())
        ahead = iter(loader)
        Finalize(None, end, (set(active_children()) - others,), exitpriority=0)
        return Items(ahead)


class _Updates(Dataset[tuple[Batch, ...]]):
    """Update number `at`, from nothing but its number."""

    def __init__(
        self,
        corpora: tuple[CorpusConfig, ...],
        prompts: PromptFormat,
        root: Path,
        seed: int,
        mixing: str,
        rank: int,
        world: int,
        augment: bool,
    ) -> None:
        self.corpora, self.prompts, self.mixing, self.augment = corpora, prompts, mixing, augment
        self.rank, self.world, self.seed = rank, world, seed
        self.samples: list[Samples] = [open_corpus(c, root) for c in corpora]
        self.orders = [
            Order(s.counts, c.batch, f"{seed} {c.name}", c.shuffle if augment else 1, c.lanes)
            for c, s in zip(corpora, self.samples, strict=True)
        ]

    def about(self) -> dict[str, Any]:
        """What decides which sample is where."""
        known: dict[str, Any] = {"seed": self.seed, "mixing": self.mixing}
        for at, (corpus, samples) in enumerate(zip(self.corpora, self.samples, strict=True)):
            turn = at if self.mixing == "round-robin" else 0
            drawn = [corpus.batch, corpus.shuffle, corpus.lanes, turn]
            known[f"corpus {corpus.name}"] = [samples.digest, *drawn]
        return known

    def __getitem__(self, at: int) -> tuple[Batch, ...]:
        if self.mixing == "round-robin":
            turn, which = divmod(at, len(self.corpora))
            return (self._batch(which, turn),)
        return tuple(self._batch(which, at) for which in range(len(self.corpora)))

    def _batch(self, which: int, at: int) -> Batch:
        """This process's rows of the corpus's batch number `at`."""
        config, order, samples = self.corpora[which], self.orders[which], self.samples[which]
        first, last = (config.batch * r // self.world for r in (self.rank, self.rank + 1))
        rows: list[Row] = []
        bad: list[Bad] = []
        for row in range(first, last):
            epoch, shard, sample = order[at * config.batch + row]
            try:
                document = samples.document(shard, sample)
                drawn = f"{self.seed} {config.name} {epoch} {shard} {sample}"
                rng = random.Random(drawn) if self.augment else None
                rows.append(make_row(document, config, self.prompts, rng))
            except FlamvidError as error:
                bad.append(Bad(samples.name(shard, sample), str(error)))
        size = 0 if config.kind in ("text", "features", "store") else config.size
        return collate(config.name, rows, self.prompts, bad, size)


class _Endless(Sampler[int]):
    """The numbers of updates from the first one on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)
