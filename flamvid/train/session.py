"""A recipe of any kind, read and carried out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from safetensors import SafetensorError

from flamvid import config
from flamvid.data.features import FeatureSet, features_of
from flamvid.data.workers import none_lost
from flamvid.errors import WeightsError
from flamvid.train.attempt import Outcome, Read, attempt, finished, in_order, writable
from flamvid.train.plan import Plan, read_plan
from flamvid.train.precision import precision
from flamvid.train.ready import LEDGER, Part, Ready, gates, parts
from flamvid.train.recipe import Recipe, read_recipe
from flamvid.train.result import save_result
from flamvid.train.snapshot import Snapshots
from flamvid.train.trainer import Report, Trainer
from flamvid.train.trial import SomeFeatures, Trial
from flamvid.train.world import World, joined
from flamvid.weights.load import LoadedModel

__all__ = ["Outcome", "read", "run", "try_out"]

Log = Callable[[str], None]
Watch = Callable[[Report], None]

_NOWHERE = Path(os.devnull)
"""The folder of a trial, which writes nothing."""


def read(path: Path, changes: Sequence[str] = (), root: Path | None = None) -> Plan | Recipe:
    """A recipe with [[corpus]] tables, or one of pairs; root: where its data are."""
    reader = read_plan if "corpus" in config.read_toml(path) else read_recipe
    return reader(path, changes, root)


def run(
    recipe: Plan | Recipe, out: Path, resume: bool, log: Log = print, watch: Watch | None = None
) -> Outcome:
    """Train as the recipe says, in as many processes as torchrun started.

    `resume` goes on from the last snapshot in `out`, or begins where there is none; without it, the
    snapshots of an earlier run are removed. SIGTERM and SIGINT end it after a snapshot. Frozen
    features of a recipe of pairs lie beside `out`, where other runs find them.
    A run that is finished trains nothing, and is refused where its recipe is another now.
    Raises ConfigError, before the first update, for what can't be read or written.
    """
    with _joined(recipe) as world, none_lost():
        if world.first:
            writable(out)
            if not resume:
                (out / LEDGER).unlink(missing_ok=True)
        world.wait()
        say = log if world.first else _nothing
        if resume and (over := finished(out, recipe.table(), _length(recipe))):
            say(over)
        if resume:
            in_order(out, recipe.table())

        def read_features(shards: list[Path], model: LoadedModel) -> FeatureSet:
            return features_of(shards, _features(out), model, say)

        job = _job(recipe, out, world, read_features, say)
        if world.first and not resume:
            # Of all stages: a run that is stopped in its first would find those of the last. Not
            # before all could be read, or a mistake in the recipe would cost the run before.
            Snapshots(out).clear()
        for trainer in job.stages():
            for part in job.parts():  # of each stage, for they train different ones
                say(str(part))
            trainer.log, trainer.watch = say, watch
            done = attempt(trainer, resume, recipe.table())
            if done.stopped:
                return Outcome(None, done.step)
        try:
            return Outcome(job.save(done.step), done.step)
        except (OSError, SafetensorError) as error:
            said = " ".join(str(error).split())
            raise WeightsError(
                f"can't write the trained model to {out}: {said}; the last snapshot is whole: make "
                "room, and give the command again"
            ) from error


def try_out(recipe: Plan | Recipe, out: Path, log: Log = print, updates: int = 2) -> Trial:
    """Load what a run in `out` needs, and make some updates of it, of which nothing is kept."""
    with _joined(recipe) as world, none_lost(), TemporaryDirectory() as scratch:
        say = log if world.first else _nothing
        some = SomeFeatures(_features(out), Path(scratch), say)
        say("loading the model and the data")
        job = _job(recipe, None, world, some, _nothing)
        steps, seconds = 0, 0.0
        for trainer in job.stages():
            say(f"making {updates} updates of {trainer.run.steps:,}")
            steps += trainer.run.steps
            seconds += trainer.trial(updates)
        return Trial(tuple(job.parts()), steps, seconds, some.seconds)


def _length(recipe: Plan | Recipe) -> str:
    """The key of a run's number of updates, in its last stage."""
    if isinstance(recipe, Plan):
        return "run.steps"
    return "contrastive.steps" if recipe.contrastive else "captions.steps"


class _Job(Protocol):
    """A run of any kind, in memory."""

    def stages(self) -> Iterable[Trainer]:
        """What trains each stage, to be carried out in turn."""
        ...

    def parts(self) -> list[Part]: ...

    def save(self, step: int) -> Path:
        """Write what all stages gave. Every process calls it."""
        ...


class _PlanRun:
    """A plan, which has one stage. out: None writes nothing."""

    def __init__(self, plan: Plan, out: Path | None, world: World) -> None:
        self.plan, self.out = plan, out or _NOWHERE
        self.ready = Ready(plan, out, world)

    def stages(self) -> Iterable[Trainer]:
        plan, ready = self.plan, self.ready
        yield Trainer(
            parallel=ready.parallel,
            updater=ready.updater,
            data=ready.data,
            run=plan.run,
            optim=plan.optim,
            snapshots=Snapshots(self.out, plan.run.keep),
            prepare=ready.prepare,
            validate=ready.validate if plan.validation else None,
            gates=lambda: gates(ready.model.flamingo),
            ledger=ready.data.ledger,
        )

    def parts(self) -> list[Part]:
        return parts(self.ready.model.flamingo)

    def save(self, step: int) -> Path:
        ready, table = self.ready, self.plan.table()
        del table["validation"]
        return save_result(self.out, ready.model, ready.parallel, table, step)


def _job(
    recipe: Plan | Recipe, out: Path | None, world: World, read_features: Read, log: Log
) -> _Job:
    if isinstance(recipe, Plan):
        return _PlanRun(recipe, out, world)
    if recipe.contrastive is None:
        from flamvid.train.caption_run import CaptionRun

        return CaptionRun(recipe, out or _NOWHERE, world, read_features, log)
    from flamvid.train.contrastive_run import ContrastiveRun

    return ContrastiveRun(recipe, out or _NOWHERE, world, read_features)


@contextmanager
def _joined(recipe: Plan | Recipe) -> Iterator[World]:
    device = recipe.run.device if isinstance(recipe, Plan) else "cpu"
    how = recipe.run.precision if isinstance(recipe, Plan) else recipe.precision
    with joined(device) as world, precision(how, world.device):
        yield world


def _features(out: Path) -> Path:
    """Where runs in this folder look for frozen features."""
    return out.parent / "features"


def _nothing(text: str) -> None:
    """What processes other than the first say."""
