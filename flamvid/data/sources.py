"""Where samples come from: shards, whose documents can be had in any order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from flamvid.data.corpus import CorpusConfig
from flamvid.data.counts import counted
from flamvid.data.features import FeatureShard
from flamvid.data.files import expand, is_remote
from flamvid.data.manifest import ManifestShard, PageShard, TextShard
from flamvid.data.samples import Document, sound
from flamvid.data.stored import StoreShard
from flamvid.data.tar import TarShard
from flamvid.errors import ConfigError, FlamvidError, SourceError
from flamvid.video.address import shown

__all__ = ["Samples", "Shard", "files_of", "open_corpus", "open_shard"]


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
    """All shards of a corpus. counts: samples in each.

    how: what opening depends on beside the file. A shard that was counted before is not opened.
    near: how many samples are in use at one time, of so many lanes; their shards are kept open.
    """

    def __init__(
        self,
        open_shard: Callable[[str], Shard],
        files: Sequence[str],
        how: str,
        near: int,
        lanes: int = 8,
    ) -> None:
        self._open_shard, self.files = open_shard, tuple(files)
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._kept = 1
        self.counts = counted(files, how, lambda at: len(self._shard(at)))
        self.total = sum(self.counts)
        # Drawn from more shards than are kept, each would be read anew for every sample.
        self._kept = 2 * lanes + near * len(files) // max(self.total, 1)

    @property
    def digest(self) -> str:
        """Of what its files are called, wherever they lie, and of how many samples each has."""
        names = [name.partition("?")[0].rpartition("/")[2] for name in self.files]
        return sha256(repr([*zip(names, self.counts, strict=True)]).encode()).hexdigest()[:16]

    def document(self, shard: int, at: int) -> Document:
        """A sample of a shard, its media not yet read; SourceError where it is gone."""
        found = self._shard(shard)
        if at >= len(found):
            raise SourceError(
                f"{shown(self.files[shard])} has {len(found)} samples, no longer "
                f"{self.counts[shard]}; it was changed"
            )
        return found.document(at)

    def name(self, shard: int, at: int) -> str:
        """What to call a sample in a message."""
        try:
            name = self._shard(shard).name(at)
        except (FlamvidError, IndexError):  # the shard itself is gone, or was changed
            name = str(at)
        return sound(f"{self.files[shard]}#{name}")

    def _shard(self, at: int) -> Shard:
        if at not in self._shards:
            self._shards[at] = self._open_shard(self.files[at])
            if len(self._shards) > self._kept:
                self._shards.popitem(last=False)
        self._shards.move_to_end(at)
        return self._shards[at]


def files_of(config: CorpusConfig, root: Path) -> list[str]:
    """The files of a corpus, in order; ConfigError for a source that is missing."""
    return expand(config.sources, root, f"corpus {config.name}")


def open_corpus(config: CorpusConfig, root: Path) -> Samples:
    """A corpus's samples; ConfigError for a missing source, SourceError for a damaged one."""
    files = files_of(config, root)
    near = 2 * config.lanes * config.shuffle  # twice: a window ends inside a shard
    how = f"{config.kind} {config.split} 2"  # 2: bad rows of lists are counted, too
    samples = Samples(partial(open_shard, config, root), files, how, near, config.lanes)
    if not samples.total:
        raise ConfigError(f"corpus {config.name}: {shown(files[0])} holds no samples")
    return samples


def open_shard(config: CorpusConfig, root: Path, address: str) -> Shard:
    """One file of a corpus; SourceError where it is damaged."""
    if config.kind == "features":
        return FeatureShard(address)
    if config.kind == "store":
        return StoreShard(address)
    if address.partition("?")[0].endswith(".tar"):
        return TarShard(address, config)
    path = address.partition("?")[0] if is_remote(address) else address
    base = config.media_root or path.rpartition("/")[0]
    if config.media_root and not is_remote(base):
        base = str(root / base)
    if config.kind == "text":
        return TextShard(address)
    if config.kind == "interleaved":
        return PageShard(address, base)
    if config.kind == "manifest":
        return ManifestShard(address, config, base)
    raise ConfigError(
        f"corpus {config.name}: {shown(address)} is no .tar; {config.kind} are tar shards"
    )
