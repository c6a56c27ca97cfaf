"""Processes that read ahead: what goes wrong in them is told as if it had been met here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import Dataset

from flamvid.errors import FlamvidError, SourceError

__all__ = ["Items", "Told", "begin_worker", "end", "none_lost"]


class Told(Dataset[Any]):
    """A data set of which what can't be read is an item: torch would raise an error from a worker
    anew, with the worker's traceback as its message."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, at: int) -> Any:
        try:
            return self.items[at]
        except FlamvidError as error:
            return error


class Items(Iterator[Any]):
    """The items of `Told` that workers read ahead; the error that one is, raised.

    No generator, which an error would end.
    """

    def __init__(self, ahead: Iterator[Any]) -> None:
        self._ahead = ahead

    def __next__(self) -> Any:
        with none_lost():
            try:
                item = next(self._ahead)
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                if str(error).startswith("Caught"):  # a worker met it itself
                    raise
                raise _lost("it ended while it gave a batch") from error
        if isinstance(item, FlamvidError):
            raise item
        return item


@contextmanager
def none_lost() -> Iterator[None]:
    """A worker that the block lost is a SourceError; torch's signal handler raises it anywhere."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if not said.startswith("DataLoader worker (pid"):
            raise
        raise _lost(said.rstrip(".")) from error


def _lost(how: str) -> SourceError:
    if threading.current_thread() is threading.main_thread():
        # Torch's handler would raise once more while the other workers are ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return SourceError(
        f"a process that reads data ahead was lost ({how}); make memory free, or lower run.workers"
    )


def begin_worker(worker: int) -> None:
    """What a worker does first."""
    torch.set_num_threads(1)
    # Ctrl-C and SLURM's SIGTERM reach all processes of a run, but it is the parent who says when
    # it is over: its last update may need this worker's batch.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def end(workers: Iterable[BaseProcess]) -> None:
    """End workers that the exit of their parent found alive: it would wait for them, after a
    SIGTERM that they ignore."""
    for worker in workers:
        if worker.is_alive():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error
            worker.kill()
