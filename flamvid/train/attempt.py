"""One attempt at a run: from its last snapshot to its end, or to a signal."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamvid import config
from flamvid.data.features import FeatureSet
from flamvid.errors import ConfigError, InputError
from flamvid.train.changes import differing
from flamvid.train.journal import Journal
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import on_signals
from flamvid.train.trainer import Done, Trainer
from flamvid.weights.load import LoadedModel

__all__ = ["Outcome", "Read", "attempt", "finished", "in_order", "writable"]

PLAN = "plan.toml"

Read = Callable[[list[Path], LoadedModel], FeatureSet]
"""Shards and a model to the features that its frozen encoder gives."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run ended: its result, None while it is not at its end, and its last update."""

    result: Path | None
    step: int


def attempt(trainer: Trainer, resume: bool, recipe: Mapping[str, Any]) -> Done:
    """Train in the folder of the trainer's snapshots; `recipe` is written there as plan.toml, which
    says what the weights were trained by, unless nothing is left to train.

    `resume` goes on from the last snapshot, or begins where there is none; without it, all
    snapshots are removed. SIGTERM and SIGINT end it after a snapshot.
    """
    world, snapshots, run = trainer.parallel.world, trainer.snapshots, trainer.run
    out = snapshots.folder
    if world.first:
        with _writing(out):
            out.mkdir(exist_ok=True)
            snapshots.sweep() if resume else snapshots.clear()
            _room(out, snapshots.missing(trainer.parallel))
    world.wait()
    first = 0
    if found := snapshots.latest():
        state, places = snapshots.restore(found, trainer.parallel, trainer.updater.optimizer)
        trainer.data.resume(places)
        first = int(state["step"])
        other = differing(_planned(out), _plain(recipe)) if first < run.steps else []
        trainer.log(f"resumed from {found}{_with_other(other)}")
    journal = None
    if world.first:
        with _writing(out):
            if first < run.steps:
                (out / PLAN).write_text(config.to_toml(recipe), encoding="utf-8")
            journal = Journal(out, first, run.tensorboard, run.wandb)
    with on_signals() as stop:
        try:
            return trainer(first, journal, stop)
        finally:
            if journal is not None:
                journal.close()


def finished(out: Path, recipe: Mapping[str, Any], length: str) -> str:
    """What to say of a run that has nothing left to train, if it is one; `length` is the key of its
    number of updates, such as run.steps.

    Raises InputError where `recipe` is not what it was trained by, which would have no effect.
    """
    table, key = length.split(".")
    found = Snapshots(out).latest()
    if found is None or (steps := _step(found)) < recipe[table][key]:
        return ""
    said = f"{out} is finished, after {steps} updates"
    ways = f"--fresh starts anew, --out elsewhere, and more {length} go on"
    if other := differing(_planned(out), _plain(recipe)):
        raise InputError(f"{said}{_with_other(other)}: nothing is left to train; {ways}")
    return f"{said}: nothing is left to train; {ways}"


def in_order(out: Path, recipe: Mapping[str, Any]) -> None:
    """Raise InputError for a run that is to learn words for longer, but learns captions already:
    its snapshot would take the place of what the first stage has trained."""
    found, before = Snapshots(out).latest(), _planned(out).get("words", {}).get("steps")
    now = recipe.get("words", {}).get("steps")
    if found is not None and before is not None and now is not None and now > before:
        raise InputError(
            f"words.steps is {now}, but {out} learns captions already, after {before} updates on "
            "words: more would be lost; leave it as it was, or --fresh starts anew"
        )


def _step(snapshot: Path) -> int:
    """Its number of updates; -1 where it is none of ours, which `restore` tells."""
    number = snapshot.name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def _planned(out: Path) -> dict[str, Any]:
    """The recipe that a run was given last; nothing where that isn't known."""
    try:
        return config.read_toml(out / PLAN)
    except ConfigError:
        return {}


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read again."""
    return tomllib.loads(config.to_toml(recipe))


def _with_other(keys: list[str]) -> str:
    shown = ", ".join([*keys[:3], *(["..."] if len(keys) > 3 else [])])
    return f" with other settings ({shown})" if keys else ""


def writable(out: Path) -> None:
    """Make the folder of a run; raises InputError where nothing can be written into it."""
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f"probe-{os.getpid()}.part"
        probe.write_text("flamvid")
        probe.unlink()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write to {out}: {error.strerror}; make room, or give another folder with --out"
        ) from error


def _room(out: Path, wanted: int) -> None:
    free = shutil.disk_usage(out).free
    if free < wanted:
        has, take = (f"{size / 1e6:,.1f} MB" for size in (free, wanted))
        raise InputError(
            f"{out} has {has} free, its snapshots take up to {take} more; "
            "make room, lower run.keep, or give another folder with --out"
        )
