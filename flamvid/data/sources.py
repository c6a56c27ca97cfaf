"""Where a corpus's samples come from: shards, each a row of documents that can be had in any order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from flamvid.data.corpus import CorpusConfig
from flamvid.data.samples import Document
from flamvid.errors import ConfigError

__all__ = ["Samples", "Shard", "open_corpus"]

_OPEN = 16  # shards whose index is kept


class Shard(Protocol):
    """A file of samples."""

    def __len__(self) -> int: ...

    def name(self, at: int) -> str:
        """What to call a sample in a message."""
        ...

    def document(self, at: int) -> Document:
        """One sample; SourceError for one that can't be read."""
        ...


class Samples:
    """All shards of a corpus. counts: samples in each."""

    def __init__(self, open_shard: Callable[[str], Shard], files: Sequence[str]) -> None:
        self._open_shard, self.files = open_shard, tuple(files)
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self.counts = tuple(len(self._shard(at)) for at in range(len(files)))
        self.total = sum(self.counts)

    def document(self, shard: int, at: int) -> Document:
        """A sample of a shard, its media not yet read."""
        return self._shard(shard).document(at)

    def name(self, shard: int, at: int) -> str:
        """What to call a sample in a message."""
        return f"{self.files[shard]}#{self._shard(shard).name(at)}"

    def _shard(self, at: int) -> Shard:
        if at not in self._shards:
            self._shards[at] = self._open_shard(self.files[at])
            if len(self._shards) > _OPEN:
                self._shards.popitem(last=False)
        self._shards.move_to_end(at)
        return self._shards[at]


def open_corpus(config: CorpusConfig, root: Path) -> Samples:
    """A corpus's samples; ConfigError where a source is missing or holds none."""
    raise ConfigError(f"corpus {config.name}: {config.kind}")
