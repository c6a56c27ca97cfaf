"""The loop of every run: batches, update, journal, validation, snapshot, and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from flamvid.data.ledger import Ledger
from flamvid.errors import SourceError
from flamvid.train.journal import Journal
from flamvid.train.optimizer import OptimConfig, rate, set_rates
from flamvid.train.parallel import Parallel
from flamvid.train.plan import RunConfig
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import Stop
from flamvid.train.update import Samples, Updated, Updater

__all__ = ["Done", "Report", "Trainer", "Updates"]


class Updates(Protocol):
    """Endless updates, each of some batches, that can go on from where it was."""

    def __next__(self) -> Sequence[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def resume(self, places: Sequence[Mapping[str, Any]]) -> None:
        """Go on where a snapshot was; `places` are the states of all its processes."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """How a run stands after an update; means since the last report.

    samples_per_second: of all processes. waited, encoded: the shares of time that went into waiting
    for data and into frozen vision. left: seconds until the end, at this speed.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    norm: float
    rate: float
    samples_per_second: float
    waited: float
    encoded: float
    left: float
    gates: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended: after how many updates, and whether a signal ended it."""

    step: int
    stopped: bool


@dataclass(slots=True)
class _Clock:
    """Time and samples since the last report."""

    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    encoded: float = 0.0
    samples: int = 0
    updates: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Trainer:
    """Trains until the last update, or until it is asked to stop.

    prepare: what a batch goes through before the objective, such as `FeatureCache`. validate: the
    losses of held-out batches by corpus; None for no validation. gates: what to journal of them.
    ledger: of samples that can't be read, whose limit is that of all processes together.
    """

    parallel: Parallel
    updater: Updater
    data: Updates
    run: RunConfig
    optim: OptimConfig
    snapshots: Snapshots
    prepare: Callable[[Any], Any] = lambda batch: batch
    validate: Callable[[], Mapping[str, float]] | None = None
    gates: Callable[[], list[list[float]]] = list
    ledger: Ledger | None = None
    log: Callable[[str], None] = print
    watch: Callable[[Report], None] | None = None

    def __call__(self, first: int, journal: Journal | None, stop: Stop) -> Done:
        """Make the updates from `first` on; the journal is that of the first process."""
        world, run = self.parallel.world, self.run
        clock = _Clock()
        for step in range(first, run.steps):
            # Dropout is of the update and the process, not of what came before: a run that was
            # resumed drops the same.
            torch.manual_seed(run.seed + step * world.size + world.rank)
            batches = list(self._batches(clock))
            share = rate(step, run.steps, self.optim.warmup, self.optim.schedule)
            set_rates(self.updater.optimizer, share)
            updated = self.updater(batches)
            clock.updates += 1
            for corpus, loss in updated.losses.items():
                clock.losses.setdefault(corpus, []).append(loss)
            self._complain(step + 1, updated, journal)

            done = step + 1
            ending = self._agreed(stop.asked)
            last = done == run.steps or ending
            if done % run.log_every == 0 or last:
                self._report(done, updated, share, clock, journal)
                clock = _Clock()
            validated = None
            if self.validate and (done % run.validate_every == 0 or done == run.steps):
                validated = self._validated(done, journal)
            # The first process says, for all are to save together.
            best = world.any(world.first and validated is not None and validated < self._best())
            if done % run.save_every == 0 or best or last:
                path = self.snapshots.save(
                    done, self.parallel, self.updater.optimizer, self.data.state_dict()
                )
                if best and validated is not None and world.first:
                    self.snapshots.mark_best(path, validated)
            if journal is not None and journal.problem:
                self.log(f"{journal.problem}; the run goes on without it")
                journal.problem = ""
            if ending:
                return Done(done, stopped=done < run.steps)
        return Done(max(first, run.steps), stopped=False)

    def trial(self, updates: int) -> float:
        """Make some updates; the seconds that all of the run would take at the last one's speed."""
        took = math.nan
        for _ in range(updates):
            start = time.perf_counter()
            self.updater(list(self._batches(_Clock())))
            took = time.perf_counter() - start
        return took * self.run.steps

    def _batches(self, clock: _Clock) -> Iterator[Samples]:
        for _ in range(self.run.accumulate):
            start = time.perf_counter()
            with self.parallel.world.agreed():
                batches = next(self.data)
            clock.waited += time.perf_counter() - start
            for batch in batches:
                start = time.perf_counter()
                ready = self.prepare(batch)
                clock.encoded += time.perf_counter() - start
                clock.samples += len(batch.keys)
                yield ready

    def _agreed(self, asked: bool) -> bool:
        """Whether any process was asked to stop; and what they could not read, all know of."""
        world, ledger = self.parallel.world, self.ledger
        news = ledger.news if ledger else ()
        stops, met = world.sum([float(asked), float(len(news))])
        if met and ledger:  # rare: the names take exchanges of their own
            ledger.share(world.gathered(news))
        return stops > 0

    def _complain(self, step: int, updated: Updated, journal: Journal | None) -> None:
        if not self.parallel.world.first or (updated.applied and not updated.skipped):
            return
        if journal is not None:
            left_out = {"skipped": list(updated.skipped), "applied": updated.applied}
            journal.write({"step": step, **left_out})
        for corpus in updated.skipped:
            self.log(f"update {step}: the loss of {corpus} is no finite number; it was left out")
        if not updated.applied:
            self.log(f"update {step}: the gradient is no finite number; no weight was changed")

    def _report(
        self, step: int, updated: Updated, share: float, clock: _Clock, journal: Journal | None
    ) -> None:
        world = self.parallel.world
        took = time.perf_counter() - clock.began
        samples = world.sum([float(clock.samples)])[0]
        report = Report(
            step=step,
            steps=self.run.steps,
            losses={corpus: sum(x) / len(x) for corpus, x in clock.losses.items()},
            norm=updated.norm,
            rate=share * self.optim.learning_rate,
            samples_per_second=samples / took,
            waited=clock.waited / took,
            encoded=clock.encoded / took,
            left=took / clock.updates * (self.run.steps - step),
            gates=self.gates(),
        )
        if journal is not None:
            journal.write(
                {
                    "step": step,
                    "loss": dict(report.losses),
                    "norm": report.norm if math.isfinite(report.norm) else None,
                    "rate": report.rate,
                    "samples_per_second": round(report.samples_per_second, 3),
                    "waited": round(report.waited, 4),
                    "encoded": round(report.encoded, 4),
                    "gates": [list(layer) for layer in report.gates],
                }
            )
        if self.watch is not None and world.first:
            self.watch(report)

    def _validated(self, step: int, journal: Journal | None) -> float:
        """The mean of the corpora's validation losses."""
        assert self.validate is not None
        losses = dict(self.validate())
        if not losses:
            raise SourceError(
                "validation has no sample that can be read; flamvid data verify names what is wrong"
            )
        mean = sum(losses.values()) / len(losses)
        if journal is not None:
            journal.write({"step": step, "validation": losses})
            shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
            self.log(f"validation after {step} updates: {shown}")
        return mean

    def _best(self) -> float:
        best = self.snapshots.best()
        return math.inf if best is None else best[1]
