"""The same index made by many machines: Ray spreads parts of a library, whose shards are merged.

A part is a task: it writes a store of its own, where the machine has fast disk, and hands it over
whole. A task whose machine or process is lost is run again from the start, by Ray; what it would
have handed over never came, so nothing is counted twice. Parts that were handed over stay beside
the store until all are merged: what a run that was stopped left there, the next one merges first.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.index.indexer import Listener
from flamvid.index.stats import Stats
from flamvid.store import Failure, FeatureStore
from flamvid.store.file import translated
from flamvid.store.locks import exclusive
from flamvid.store.maintain import merge, provenance_of

__all__ = [
    "Cluster",
    "Work",
    "claimed",
    "index_on_cluster",
    "merge_left_over",
]

_LOCK = "lock"
_log = logging.getLogger("flamvid.index.cluster")

Work = Callable[[Sequence[str], Path], Stats]
"""Indexes sources into a new store. It is pickled, so it is no closure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the work is done. address: of a Ray cluster; None starts one on this machine.

    part: sources per task, at most, which a lost task has to do again; fewer where all can't have
    work otherwise. cpus, gpus: that a task claims. processes: how many run at once on a cluster
    that is started here, None for all there is room for.
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


@contextmanager
def claimed(store: Path) -> Iterator[None]:
    """Let no other run hand parts over beside this store: theirs would have the same names."""
    folder = _folder(store)
    refusal = f"another run hands parts over in {folder}; wait for it, or give another --store"
    with ExitStack() as stack:
        with translated(folder):
            folder.mkdir(exist_ok=True)
            (folder / _LOCK).touch()
            stack.enter_context(exclusive(folder / _LOCK, refusal))
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)
            _tidy(folder)


def merge_left_over(store: Path) -> None:
    """Add to the store what a run that was stopped had handed over.

    StoreError where that was made with other settings than the store.
    """
    sound, held = [], provenance_of(store) if store.exists() else None
    for shard in sorted(_folder(store).glob("*.lmdb")):
        try:
            made = provenance_of(shard)
        except DamagedStore as error:  # its sources are new to the run that follows
            _log.warning("%s; what is in it is indexed again", error)
            continue
        sound.append(shard)
        held = held or made
        if differs := made.difference(held):
            folder = _folder(store)
            raise StoreError(
                f"{folder} holds parts of a stopped run whose {differs} as in {store}; merge them "
                f"into another store (flamvid store merge OTHER {folder}/*.lmdb), and delete "
                "the folder"
            )
    if sound:
        # The sources of what is damaged are new to the run that follows.
        merge(store, sound, newer=True)
    _clear(store)


def index_on_cluster(
    sources: Sequence[str],
    store: Path,
    work: Work,
    cluster: Cluster,
    listener: Listener | None = None,
    stats: Stats | None = None,
) -> Stats:
    """Do `work` on all sources, and merge what it makes into the store, in the sources' order.

    Sources and the store's folder must have the same names on all machines. Returns the counts of
    all tasks, on top of `stats`; the listener hears of them as tasks end. DamagedStore where a part
    was damaged on its way: the others are merged, and the next run does its sources again.
    """
    total = stats or Stats(total=len(sources))
    _folder(store).mkdir(exist_ok=True)
    for done, shard in _run(work, sources, _folder(store), cluster):
        total.add(done)
        if listener is not None:
            for failure in _failures(shard):
                listener.failed(failure.source, failure.reason, failure.message)
            listener.progress(total)
    if shards := sorted(_folder(store).glob("*.lmdb")):
        merged = merge(store, shards, newer=True)
        total.duplicates += merged.present - merged.told
        total.captioned += merged.told
        total.indexed -= merged.present
        total.moved += merged.settled.moved
        total.removed += merged.settled.removed
        _clear(store)
        if merged.damaged:
            raise DamagedStore(
                f"{len(merged.damaged)} videos were damaged on their way into {store} "
                f"({merged.damaged[0].what}); run it again to index those"
            )
    return total


def _folder(store: Path) -> Path:
    return store.with_name(f"{store.name}.parts")


def _clear(store: Path) -> None:
    """Remove parts that were merged, and what was on its way to be one."""
    for file in _folder(store).glob("*"):
        if file.name != _LOCK:
            file.unlink()
    _tidy(_folder(store))


def _tidy(folder: Path) -> None:
    """Remove the folder if nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


def _failures(shard: Path) -> list[Failure]:
    part = FeatureStore(shard)
    try:
        return part.failures()
    finally:
        part.close()


def _run(
    work: Work, sources: Sequence[str], folder: Path, cluster: Cluster
) -> Iterator[tuple[Stats, Path]]:
    """What the tasks count and the stores that they handed over, in the order in which they end."""
    ray, run = _ray(), uuid.uuid4().hex[:8]  # a task may outlive the run that began it
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
        at_once = int(ray.cluster_resources().get("CPU", 1) / cluster.cpus)
        waiting = enumerate(_parts(sources, cluster.part, at_once))
        running: dict[Any, Path] = {}
        while True:
            for number, part in islice(waiting, _SENT - len(running)):
                # By whose names they are merged in order.
                shard = folder / f"{number:06}-{run}.lmdb"
                running[task.remote(work, list(part), str(shard))] = shard
            if not running:
                return
            [done], _ = ray.wait(list(running))
            try:
                yield ray.get(done), running.pop(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
    finally:
        if started:
            ray.shutdown()


_SENT = 256  # tasks that the cluster knows of at once


def _parts(sources: Sequence[str], most: int, at_once: int) -> Iterable[Sequence[str]]:
    """At most `most` sources each, and fewer where all that run at once could not have one."""
    size = max(1, min(most, math.ceil(len(sources) / max(1, at_once))))
    return (sources[at : at + size] for at in range(0, len(sources), size))


def _task(work: Work, part: Sequence[str], shard: str) -> Stats:
    """Index a part on this machine, and move the whole store to where the others lie."""
    final = Path(shard)
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
