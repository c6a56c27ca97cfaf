"""Trains a tiny model from its last snapshot on, and notes what every update saw. To be killed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from flamvid.train.journal import Journal
from flamvid.train.objective import Objective
from flamvid.train.optimizer import OptimConfig, make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.plan import RunConfig
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import on_signals
from flamvid.train.trainer import Trainer
from flamvid.train.update import Updater
from flamvid.train.world import World
from tests.train.toy import MEDIA, Stream, make_flamingo


def train(out: Path, steps: int) -> None:
    """Train in `out`; a line of samples for each update goes into `seen.jsonl`."""
    model = make_flamingo()
    model.resampler.dropout.p = 0.2  # so that randomness has to be resumed, too
    parallel = Parallel(Objective(model, MEDIA), World())
    optim = OptimConfig(learning_rate=1e-2, warmup=3)
    optimizer = make_optimizer(parallel.trained(), optim)
    data, snapshots, first = Stream(), Snapshots(out), 0
    if found := snapshots.latest():
        state, places = snapshots.restore(found, parallel, optimizer)
        data.resume(places)
        first = state["step"]
    seen = (out / "seen.jsonl").open("a")

    class Noting(Updater):
        def __call__(self, batches):  # type: ignore[no-untyped-def]
            updated = super().__call__(batches)
            keys = [key for batch in batches for key in batch.keys]
            seen.write(json.dumps({"update": data.number - 1, "keys": keys}) + "\n")
            seen.flush()
            time.sleep(0.01)
            return updated

    trainer = Trainer(
        parallel=parallel,
        updater=Noting(parallel, optimizer, {"pages": 1.0, "videos": 0.3}, 1.0),
        data=data,
        run=RunConfig(steps=steps, save_every=2, log_every=1),
        optim=optim,
        snapshots=snapshots,
        prepare=lambda batch: batch,
    )
    with on_signals() as stop:
        done = trainer(first, Journal(out, first), stop)
    if not done.stopped:
        torch.save({n: p.detach() for n, p in parallel.trained()}, out / "final.pt")
