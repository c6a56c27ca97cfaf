"""A recipe of any kind, read and carried out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flamvid import config
from flamvid.train.attempt import Outcome, attempt, writable
from flamvid.train.plan import Plan, read_plan
from flamvid.train.precision import precision
from flamvid.train.ready import LEDGER, Part, Ready, gates, parts
from flamvid.train.recipe import Recipe, read_recipe
from flamvid.train.result import save_result
from flamvid.train.snapshot import Snapshots
from flamvid.train.trainer import Report, Trainer
from flamvid.train.world import World, joined

__all__ = ["Outcome", "read", "run", "try_out"]

Log = Callable[[str], None]
Watch = Callable[[Report], None]


def read(path: Path, changes: Sequence[str] = (), root: Path | None = None) -> Plan | Recipe:
    """A recipe with [[corpus]] tables, or one of pairs; root: where its data are."""
    reader = read_plan if "corpus" in config.read_toml(path) else read_recipe
    return reader(path, changes, root)


def run(
    recipe: Plan | Recipe, out: Path, resume: bool, log: Log = print, watch: Watch | None = None
) -> Outcome:
    """Train as the recipe says, in as many processes as torchrun started.

    `resume` goes on from the last snapshot in `out`, or begins where there is none; without it, the
    snapshots of an earlier run are removed. SIGTERM and SIGINT end it after a snapshot.
    Raises ConfigError, before the first update, for what can't be read or written.
    """
    device = recipe.run.device if isinstance(recipe, Plan) else "cpu"
    how = recipe.run.precision if isinstance(recipe, Plan) else recipe.precision
    with joined(device) as world, precision(how, world.device):
        if world.first:
            writable(out)
        world.wait()
        say = log if world.first else _nothing
        if isinstance(recipe, Plan):
            return _run(recipe, out, resume, world, say, watch)
        if recipe.contrastive is None:
            from flamvid.train.caption_run import run_captions as run_pairs
        else:
            from flamvid.train.contrastive_run import run_contrastive as run_pairs
        return run_pairs(recipe, out, resume, world, say, watch)


def _run(
    plan: Plan, out: Path, resume: bool, world: World, log: Log, watch: Watch | None
) -> Outcome:
    if world.first and not resume:
        (out / LEDGER).unlink(missing_ok=True)
    ready = Ready(plan, out, world)
    trainer = Trainer(
        parallel=ready.parallel,
        updater=ready.updater,
        data=ready.data,
        run=plan.run,
        optim=plan.optim,
        snapshots=Snapshots(out, plan.run.keep),
        prepare=ready.prepare,
        validate=ready.validate if plan.validation else None,
        gates=lambda: gates(ready.model.flamingo),
        log=log,
        watch=watch,
    )
    done = attempt(trainer, resume, plan.table())
    if done.stopped:
        return Outcome(None, done.step)
    settings = {key: value for key, value in plan.table().items() if key != "validation"}
    return Outcome(save_result(out, ready.model, ready.parallel, settings, done.step), done.step)


def try_out(plan: Plan, updates: int = 2) -> tuple[list[Part], float]:
    """Load all that a run needs and make some updates of it, of which nothing is kept.

    Returns the model's parts, and the seconds that the run would take at the last one's speed.
    """
    with joined(plan.run.device) as world, precision(plan.run.precision, world.device):
        ready = Ready(plan, None, world)
        took = math.nan
        for _ in range(updates):
            start = time.perf_counter()
            batches = [
                ready.prepare(b) for _ in range(plan.run.accumulate) for b in next(ready.data)
            ]
            ready.updater(batches)
            took = time.perf_counter() - start
        return parts(ready.model.flamingo), took * plan.run.steps


def _nothing(text: str) -> None:
    """What processes other than the first say."""
