"""Samples in order, while what of them waits for other machines is on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NoReturn, TypeVar

from flamvid.data.samples import Document
from flamvid.errors import FlamvidError

__all__ = ["ahead"]

_THREADS = 32  # half of the web's servers are slow to say no

Place = TypeVar("Place")
Made = TypeVar("Made")


def ahead(
    places: Iterable[Place],
    document: Callable[[Place], Document],
    make: Callable[[Document], Made],
    waits: Callable[[Document], bool],
    kind: str,
) -> Iterator[tuple[Place, Callable[[], Made]]]:
    """Each place with what makes something of its document, or raises its FlamvidError.

    waits: whether that is done by a thread from now on; the rest is in its turn. Documents are
    opened here, for shards are not for several threads. kind: of the corpus.
    """
    step = 1 if kind == "features" else 2 * _THREADS  # those are in memory with the sample
    rest = iter(places)
    pool = ThreadPoolExecutor(_THREADS)
    try:
        while some := list(islice(rest, step)):
            yield from [(place, _making(place, document, make, waits, pool)) for place in some]
    finally:
        pool.shutdown(cancel_futures=True)


def _making(
    place: Place,
    document: Callable[[Place], Document],
    make: Callable[[Document], Made],
    waits: Callable[[Document], bool],
    pool: ThreadPoolExecutor,
) -> Callable[[], Made]:
    try:
        found = document(place)
    except FlamvidError as error:
        return partial(_raise, error)
    made = partial(make, found)
    return pool.submit(made).result if waits(found) else made


def _raise(error: FlamvidError) -> NoReturn:
    raise error
