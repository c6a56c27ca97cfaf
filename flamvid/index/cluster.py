"""The same index made by many machines: Ray spreads parts of a library, whose shards are merged.

A part is a task: it writes a store of its own, where the machine has fast disk, and hands it over
whole. A task whose machine or process is lost is run again from the start, by Ray; what it would
have handed over never came, so nothing is counted twice. Parts that were handed over stay beside
the store until all are merged: a run that was stopped finds them there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamvid.errors import DamagedStore, InputError
from flamvid.index.stats import Stats
from flamvid.store.maintain import merge

__all__ = ["Cluster", "Work", "index_on_cluster"]

Work = Callable[[Sequence[str], Path], Stats]
"""Indexes sources into a new store. It is pickled, so it is no closure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the work is done. address: of a Ray cluster; None starts one on this machine.

    part: sources per task; what a lost task has to do again. cpus, gpus: that a task claims.
    processes: how many run at once on a cluster that is started here, None for all there is room
    for.
    """

    address: str | None = None
    part: int = 64
    cpus: float = 1.0
    gpus: float = 0.0
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.part < 1:
            raise InputError(f"the part is {self.part} sources; must be at least 1")
        if self.cpus <= 0 or self.gpus < 0:
            raise InputError(f"a task claims {self.cpus:g} CPUs and {self.gpus:g} GPUs; give some")


def index_on_cluster(
    sources: Sequence[str],
    store: Path,
    work: Work,
    cluster: Cluster,
    on_part: Callable[[Stats], None] = lambda stats: None,
    stats: Stats | None = None,
) -> Stats:
    """Do `work` on all sources, and merge what it makes into the store, in the sources' order.

    Sources and the store's folder must have the same names on all machines. Returns the counts of
    all tasks, on top of `stats`; on_part hears of them as tasks end. DamagedStore where a part was
    damaged on its way: the others are merged, and the next run does its sources again.
    """
    total = stats or Stats(total=len(sources))
    folder = store.with_name(f"{store.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [sources[at : at + cluster.part] for at in range(0, len(sources), cluster.part)]
    shards = [folder / f"{_digest(part)}.lmdb" for part in parts]
    for done in _run(work, parts, shards, cluster):
        total.add(done)
        on_part(total)
    if shards:
        merged = merge(store, shards)
        total.duplicates += merged.present
        total.indexed -= merged.present
        shutil.rmtree(folder)
        if merged.damaged:
            raise DamagedStore(
                f"{len(merged.damaged)} videos were damaged on their way into {store} "
                f"({merged.damaged[0].what}); run it again to index those"
            )
    return total


def _digest(part: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(part).encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _run(
    work: Work, parts: Sequence[Sequence[str]], shards: Sequence[Path], cluster: Cluster
) -> Iterator[Stats]:
    """What the tasks count, in the order in which they end."""
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ours = {"num_cpus": cluster.processes * cluster.cpus} if cluster.processes else {}
        where = {"address": cluster.address} if cluster.address else ours
        ray.init(**where, log_to_driver=False, include_dashboard=False, logging_level="error")
    try:
        task = ray.remote(_task).options(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_retries=-1,  # of a lost machine or process; an error of ours is raised at once
            retry_exceptions=False,
        )
        waiting = list(zip(parts, shards, strict=True))[::-1]
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < _SENT:
                part, shard = waiting.pop()
                running.append(task.remote(work, list(part), str(shard)))
            done, running = ray.wait(running)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
    finally:
        if started:
            ray.shutdown()


_SENT = 256  # tasks that the cluster knows of at once


def _task(work: Work, part: Sequence[str], shard: str) -> Stats:
    """Index a part on this machine, and move the whole store to where the others lie."""
    final = Path(shard)
    if final.exists():  # of a run before this one, or of this one's lost answer
        return Stats(found=len(part), present=len(part))
    with tempfile.TemporaryDirectory(prefix="flamvid-part-") as scratch:
        made = Path(scratch, "part.lmdb")
        stats = work(part, made)
        copy = final.with_name(f".{final.name}.{os.uname().nodename}.{os.getpid()}")
        shutil.copyfile(made, copy)
        copy.replace(final)
    return stats


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--engine ray needs Ray; install it with `pip install 'flamvid[cluster]'`, "
            "or run the parts yourself with --shard I/N and merge them"
        ) from error
    return ray
