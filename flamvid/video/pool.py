"""Many sources at once: each decoded in a child of its own, results in order, nothing piled up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

from flamvid.errors import FlamvidError, InputError
from flamvid.types import Frames
from flamvid.video.sample import Sampling
from flamvid.video.source import open_recorded

__all__ = ["Decoded", "decode_many"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of one source: its frames, or the error that names it."""

    source: str | PathLike[str]
    frames: Frames | None
    error: FlamvidError | None


def decode_many(
    sources: Iterable[str | PathLike[str]],
    sampling: Sampling,
    *,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
    workers: int = 2,
) -> Iterator[Decoded]:
    """The sampled frames of each source, in the order given.

    workers: sources that are decoded at the same time. At most twice as many are decoded or being
    decoded ahead of who reads, so memory is bounded however slow that one is, and `sources` may be
    endless. A source that fails is an item with its error; the others come all the same.
    """
    if workers < 1:
        raise InputError(f"the number of workers is {workers}; must be at least 1")

    def one(source: str | PathLike[str]) -> Decoded:
        try:
            with open_recorded(source, size=size, timeout=timeout) as opened:
                at = sampling.indices(opened.pts, opened.durations).tolist()
                return Decoded(source, opened.read(at), None)
        except FlamvidError as error:
            return Decoded(source, None, error)

    # Threads only wait here: decoding happens in their children.
    with ThreadPoolExecutor(workers, thread_name_prefix="flamvid-decode") as pool:
        ahead: deque[Future[Decoded]] = deque()
        try:
            for source in sources:
                ahead.append(pool.submit(one, source))
                if len(ahead) == 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # who reads has had enough
            for future in ahead:
                future.cancel()
