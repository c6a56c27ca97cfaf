"""Batches that are encoded side by side, and come out in the order in which they went in.

On a CPU, two batches on a core each are done a fifth sooner than one after the other on both: no
core waits for the other at the end of every layer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

__all__ = ["Lanes"]

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4  # each holds the activations of its batch


class Lanes(Generic[T, R]):
    """Threads that do `work` and share the threads of torch; on a GPU it is one.

    `put` and `ready` are for one thread.
    """

    def __init__(self, work: Callable[[T], R], device: torch.device) -> None:
        self._work = work
        threads = torch.get_num_threads()
        self.count = min(_MOST, threads) if device.type == "cpu" else 1
        self._doing: deque[tuple[T, Future[R]]] = deque()
        started = threading.Barrier(self.count + 1)
        self._pool = ThreadPoolExecutor(
            self.count, "lane", _begin, (threads // self.count, started)
        )
        try:
            for _ in range(self.count):
                self._pool.submit(int)
        except BaseException:  # no thread is to be had: those there are would wait for it
            started.abort()
            self._pool.shutdown()
            raise
        started.wait()
        torch.set_num_threads(threads)  # of threads that start later: the lanes changed that too

    def close(self) -> None:
        """End the threads; what no lane has begun is not done."""
        self._pool.shutdown(cancel_futures=True)

    def put(self, item: T) -> Iterator[tuple[T, R]]:
        """Set to work on it; what is done by then, waiting if one is ahead of the lanes already."""
        self._doing.append((item, self._pool.submit(self._work, item)))
        while len(self._doing) > self.count + 1:
            yield self._oldest()
        yield from self.ready()

    def ready(self, all_of_them: bool = False) -> Iterator[tuple[T, R]]:
        """Items and what was made of them; all_of_them: wait until there are no more."""
        while self._doing and (all_of_them or self._doing[0][1].done()):
            yield self._oldest()

    def _oldest(self) -> tuple[T, R]:
        item, future = self._doing.popleft()
        return item, future.result()


def _begin(threads: int, started: threading.Barrier) -> None:
    torch.get_num_threads()  # or a first layer here would take over the process's number
    torch.set_num_threads(threads)
    started.wait()
