"""A plan made ready and carried out: model, data, trainer; checked before the first update."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flamvid import config
from flamvid.errors import InputError
from flamvid.train.journal import Journal
from flamvid.train.plan import Plan
from flamvid.train.precision import precision
from flamvid.train.ready import Part, Ready, gates, parts
from flamvid.train.result import save_result
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import on_signals
from flamvid.train.trainer import Done, Report, Trainer
from flamvid.train.world import World, joined

__all__ = ["Outcome", "run", "try_out"]

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run ended: its result, None while it is not at its end, and its last update."""

    result: Path | None
    step: int


def run(
    plan: Plan,
    out: Path,
    resume: bool,
    log: Log = print,
    watch: Callable[[Report], None] | None = None,
) -> Outcome:
    """Train as the plan says, in as many processes as torchrun started.

    `resume` goes on from the last snapshot in `out`, or begins where there is none; without it, the
    snapshots of an earlier run are removed. SIGTERM and SIGINT end it after a snapshot.
    Raises ConfigError, before the first update, for what can't be read or written.
    """
    with joined(plan.run.device) as world:
        say = log if world.first else _nothing
        with precision(plan.run.precision, world.device):
            return _run(plan, out, resume, world, say, watch)


def _run(
    plan: Plan,
    out: Path,
    resume: bool,
    world: World,
    log: Log,
    watch: Callable[[Report], None] | None,
) -> Outcome:
    if world.first:
        _writable(out)
    world.wait()
    ready = Ready(plan, out, world)
    snapshots = Snapshots(out, plan.run.keep)
    if world.first:
        _room(out, snapshots.size(ready.parallel) * (plan.run.keep + 2))
        snapshots.sweep() if resume else snapshots.clear()
        (out / "plan.toml").write_text(config.to_toml(plan.table()), encoding="utf-8")
    world.wait()
    first = 0
    if found := snapshots.latest():
        state, places = snapshots.restore(found, ready.parallel, ready.optimizer)
        ready.resume_data(places)
        first = int(state["step"])
        log(f"resumed from {found}")

    trainer = Trainer(
        parallel=ready.parallel,
        updater=ready.updater,
        data=ready.data,
        run=plan.run,
        optim=plan.optim,
        snapshots=snapshots,
        prepare=ready.prepare,
        validate=ready.validate if plan.validation else None,
        gates=lambda: gates(ready.model.flamingo),
        log=log,
        watch=watch,
        about={"recipe": plan.name},
    )
    journal = None
    if world.first:
        journal = Journal(out, first, plan.run.tensorboard, plan.run.wandb)
    with on_signals() as stop:
        try:
            done: Done = trainer(first, journal, stop)
        finally:
            if journal is not None:
                journal.close()
    if done.stopped:
        return Outcome(None, done.step)
    settings = {key: value for key, value in plan.table().items() if key != "validation"}
    return Outcome(save_result(out, ready.model, ready.parallel, settings, done.step), done.step)


def try_out(plan: Plan, out: Path, updates: int = 2) -> tuple[list[Part], float]:
    """Load all that a run needs and make some updates of it, of which nothing is kept.

    Returns the model's parts, and the seconds that the run would take at the last one's speed.
    """
    with joined(plan.run.device) as world, precision(plan.run.precision, world.device):
        quiet = replace(plan, run=replace(plan.run, cache=""))
        ready = Ready(quiet, out, world)
        took = math.nan
        for _ in range(updates):
            start = time.perf_counter()
            batches = [
                ready.prepare(b) for _ in range(plan.run.accumulate) for b in next(ready.data)
            ]
            ready.updater(batches)
            took = time.perf_counter() - start
        return parts(ready.model.flamingo), took * plan.run.steps


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f"probe-{os.getpid()}.part"
        probe.write_text("flamvid")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"can't write to {out}: {error.strerror}; give another folder with --out"
        ) from error


def _room(out: Path, wanted: int) -> None:
    free = shutil.disk_usage(out).free
    if free < wanted:
        raise InputError(
            f"{out} has {free / 1e9:.2f} GB free, its snapshots take up to {wanted / 1e9:.2f} GB; "
            "make room, lower run.keep, or give another folder with --out"
        )


def _nothing(text: str) -> None:
    """What processes other than the first say."""
