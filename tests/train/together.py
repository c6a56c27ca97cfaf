"""Trains a tiny model in as many processes as there are, each on its share of every batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from flamvid.errors import SourceError
from flamvid.train import session
from flamvid.train.objective import Objective
from flamvid.train.optimizer import OptimConfig, make_optimizer, rate, set_rates
from flamvid.train.parallel import Parallel
from flamvid.train.snapshot import Snapshots
from flamvid.train.update import Updater
from flamvid.train.world import World, joined
from tests.train.toy import MEDIA, make_batch, make_flamingo, rows_of

Job = tuple[str, Path, int, Path]
ROWS = 4
BROKEN = 7  # the update in which one row of one corpus has no finite loss


def train(world: World, engine: str, folder: Path, updates: int, out: Path) -> None:
    """From the last snapshot in `folder` to so many updates; all weights, whole, into `out`."""
    model = make_flamingo()
    parallel = Parallel(Objective(model, MEDIA), world, engine)
    optim = OptimConfig(learning_rate=1e-2, warmup=3)
    optimizer = make_optimizer(parallel.trained(), optim)
    updater = Updater(parallel, optimizer, {"pages": 1.0, "videos": 0.3}, clip=0.5)
    snapshots, first = Snapshots(folder), 0
    if found := snapshots.latest():
        state, places = snapshots.restore(found, parallel, optimizer)
        first = state["step"]
        assert [p["rank"] for p in places] == list(range(state["processes"]))
    for step in range(first, updates):
        set_rates(optimizer, rate(step, updates, optim.warmup, optim.schedule))
        batches = [make_batch(c, ROWS, 2 * step + i) for i, c in enumerate(("pages", "videos"))]
        if step == BROKEN:
            assert batches[1].features is not None
            batches[1].features[-1] = float("inf")  # of the last process alone
        share = ROWS // world.size
        mine = slice(world.rank * share, (world.rank + 1) * share)
        updated = updater([rows_of(batch, mine) for batch in batches])
        assert updated.skipped == (("videos",) if step == BROKEN else ())
        assert updated.tokens == {b.corpus: int((b.targets >= 0).sum()) for b in batches}
    snapshots.save(updates, parallel, optimizer, {"rank": world.rank})
    weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in parallel.trained()}
    if world.first:
        torch.save({n: w.detach() for n, w in weights.items()}, out)


def run_noting(recipe: Path, out: Path, notes: Path) -> None:
    """A whole run, and what this process opened to write, renamed and removed."""
    changed: set[str] = set()

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str):
            opened = args[2] & (os.O_WRONLY | os.O_RDWR)
            if opened:
                changed.add(args[0])
        elif event in ("os.rename", "os.remove", "os.rmdir"):
            changed.add(os.fspath(args[0]))

    sys.addaudithook(note)
    outcome = session.run(session.read(recipe), out, True, lambda _: None)
    assert outcome.result is not None
    (notes / f"{os.environ['RANK']}.txt").write_text("\n".join(changed))


def train_all(jobs: Sequence[Job]) -> None:
    """Do jobs one after the other in this process's world."""
    with joined("cpu") as world:
        for job in jobs:
            train(world, *job)
            world.wait()


def run_limited(recipe: Path, out: Path, changes: Sequence[str]) -> None:
    """A whole run, of which samples may be bad; how it ended goes into a file."""
    plan = session.read(recipe, changes)
    try:
        said = f"after {session.run(plan, out, True, lambda _: None).step}"
    except SourceError as error:
        said = str(error)
    (out / f"said-{os.environ['RANK']}").write_text(said)


def run_plan(recipe: Path, out: Path, changes: Sequence[str]) -> None:
    """A whole run in as many processes as there are."""
    session.run(session.read(recipe, changes), out, True, lambda _: None)


def one_has_no_media() -> None:
    """An update of a shared model in which the second process has text alone."""
    with joined("cpu") as world:
        parallel = Parallel(Objective(make_flamingo(), MEDIA), world, "fsdp")
        parallel.backward(parallel(make_batch(media=2 if world.first else 0)))
        assert parallel.finish(1.0) > 0
