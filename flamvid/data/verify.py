"""Whether a recipe's data can be trained on: every sample is read, and is there once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from flamvid.data.corpus import CorpusConfig
from flamvid.data.samples import Document, Look, Media
from flamvid.data.sources import files_of, open_shard
from flamvid.errors import FlamvidError

__all__ = ["Problem", "verify"]

Count = Callable[[str, CorpusConfig, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a sample, or with a whole file."""

    split: str
    corpus: str
    sample: str
    reason: str

    def __str__(self) -> str:
        return f"{self.split} {self.corpus}: {self.sample}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Place:
    split: str
    corpus: str
    sample: str


def verify(
    corpora: Mapping[str, Sequence[CorpusConfig]], root: Path, count: Count | None = None
) -> Iterator[Problem]:
    """Problems as they are found: what can't be read, what is there twice, and what leaks.

    A pair is known by its decoded frames, a page by all that is on it. A leak is a sample of one
    split that is in another, too. count: told the split, the corpus and its good samples.
    """
    seen: dict[bytes, _Place] = {}
    for split, configs in corpora.items():
        for config in configs:
            good = 0
            for found in _checked(split, config, root, seen):
                if found is None:
                    good += 1
                else:
                    yield found
            if count is not None:
                count(split, config, good)


def _checked(
    split: str, config: CorpusConfig, root: Path, seen: dict[bytes, _Place]
) -> Iterator[Problem | None]:
    """For each sample a problem, or None."""
    for file in files_of(config, root):
        try:
            shard = open_shard(config, root, file)
        except FlamvidError as error:
            yield Problem(split, config.name, file, str(error))
            continue
        for at in range(len(shard)):
            place = _Place(split, config.name, f"{file}#{shard.name(at)}")
            try:
                digest = _digest(shard.document(at), config)
            except FlamvidError as error:
                yield Problem(split, config.name, place.sample, str(error))
                continue
            first = seen.setdefault(digest, place)
            if first is place:
                yield None
                continue
            what = "is a duplicate of" if first.split == split else f"leaks: it is in {first.split}"
            where = "" if first.corpus == config.name else f" {first.corpus}:"
            reason = f"{what}{where} {first.sample}"
            yield Problem(split, config.name, place.sample, reason)


def _digest(document: Document, config: CorpusConfig) -> bytes:
    """What a sample is known by; every media of it is read."""
    digest = blake2b(digest_size=16)
    for part in document.parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        media = part if isinstance(part, Media) else part(Look(config.frames, config.fps))
        for tensor in (media.frames, media.features):
            if tensor is not None:
                digest.update(_bytes(tensor))
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    return str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()
