"""Sources as they come: folders, globs and lists that are looked through again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flamvid.errors import InputError
from flamvid.index.content import status
from flamvid.index.manifest import sources

__all__ = ["Look", "watched"]

_log = logging.getLogger("flamvid.index.watch")


@dataclass(frozen=True, slots=True)
class Look:
    """All was looked through once. gone: sources that are no longer where they were. changing: one
    that came before is about to come anew, so it may be one of two that change places."""

    gone: frozenset[str] = frozenset()
    changing: bool = False


def watched(
    arguments: Sequence[str], every: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str | Look]:
    """Sources as they come, without end; one that is being written comes when it has come to rest.

    every: seconds between looks; a `Look` comes after each. What is not there, or can't be listed,
    is waited for. A source that was gone comes again when it is back.
    """
    before: dict[str, tuple[int, float] | None] = {}
    given: dict[str, tuple[int, float] | None] = {}
    troubles: list[str] = []
    while True:
        now: dict[str, tuple[int, float] | None] = {}
        told, troubles = troubles, []
        for argument in arguments:
            try:
                for source in sources([argument]):
                    now[source] = state = status(source)
                    rests = state is None or before.get(source) == state
                    if rests and not (source in given and given[source] == state):
                        given[source] = state
                        yield source
            except (InputError, OSError) as error:
                troubles.append(str(error))
        for trouble in troubles:
            if trouble not in told:
                _log.warning("%s; waiting for it", trouble)
        # What can't be listed may be there all the same.
        gone = frozenset() if troubles else frozenset(given.keys() - now.keys())
        for source in gone:
            del given[source]
        before = now
        yield Look(gone, any(source in now and now[source] != given[source] for source in given))
        sleep(every)
