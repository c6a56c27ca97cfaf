"""Whether a recipe's data can be trained on: every sample is read, and is there once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b, file_digest, sha256
from pathlib import Path

from torch import Tensor

from flamvid.data.ahead import ahead
from flamvid.data.corpus import CorpusConfig
from flamvid.data.files import Piece, failing, is_remote
from flamvid.data.media import Clip, Pictures, is_afar
from flamvid.data.samples import Document, Look, Media
from flamvid.data.sources import files_of, open_shard
from flamvid.data.stored import Span
from flamvid.errors import FlamvidError
from flamvid.video.address import shown

__all__ = ["Problem", "verify"]

Count = Callable[[str, CorpusConfig, int, int], None]


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
    corpus: str
    sample: str


@dataclass(slots=True)
class _Split:
    """Where each sample and each media of a split was first met."""

    name: str
    samples: dict[bytes, _Place] = field(default_factory=dict)
    media: dict[bytes, _Place] = field(default_factory=dict)


def verify(
    corpora: Mapping[str, Sequence[CorpusConfig]], root: Path, count: Count | None = None
) -> Iterator[Problem]:
    """Problems as they are found: what can't be read, what is there twice, and what leaks.

    A duplicate is a sample of the same decoded frames and the same texts; what else is said of a
    clip is a sample of its own. A leak is a sample whose frames, or whose video, are in another
    split, whatever is said there and whichever part of it is shown; a page leaks as a whole.
    count: told the split, the corpus, its good samples, and images that its pages lack.
    """
    splits: list[_Split] = []
    for name, configs in corpora.items():
        splits.append(_Split(name))
        for config in configs:
            good = missing = bad = 0
            for found in _checked(config, root, splits):
                if isinstance(found, Problem):
                    bad += 1
                    yield found
                else:
                    good, missing = good + 1, missing + found
            if not good + bad:  # which training refuses
                file = files_of(config, root)[0]
                yield Problem(name, config.name, shown(file), "holds no samples")
            if count is not None:
                count(name, config, good, missing)


def _checked(config: CorpusConfig, root: Path, splits: Sequence[_Split]) -> Iterator[Problem | int]:
    """For each sample a problem, or how many images it lacks."""
    split = splits[-1].name
    for file in files_of(config, root):
        try:
            shard = open_shard(config, root, file)
        except FlamvidError as error:
            yield Problem(split, config.name, file, str(error))
            continue

        def read(document: Document) -> tuple[Document, list[bytes]]:
            return document, _media(document, config)

        for at, made in ahead(range(len(shard)), shard.document, read, _afar, config.kind):
            place = _Place(config.name, f"{file}#{shard.name(at)}")
            try:
                document, media = made()
                reason = _known(document, media, place, splits)
            except FlamvidError as error:
                reason = str(error)
            yield Problem(split, config.name, place.sample, reason) if reason else document.missing


def _afar(document: Document) -> bool:
    return any(map(is_afar, document.parts))


def _known(
    document: Document, media: Sequence[bytes], place: _Place, splits: Sequence[_Split]
) -> str:
    """Where a sample was met before; "" for nowhere, of which this makes a note."""
    *others, split = splits
    for key in media:
        for other in others:
            if first := other.media.get(key):
                return f"leaks: it is in {other.name} {first.corpus}: {first.sample}"
        split.media.setdefault(key, place)
    sample = blake2b(
        b"\0".join([media[0], *map(str.encode, document.texts)]), digest_size=16
    ).digest()
    first = split.samples.setdefault(sample, place)
    if first is place:
        return ""
    where = "" if first.corpus == place.corpus else f"{first.corpus}: "
    return f"is a duplicate of {where}{first.sample}"


def _media(document: Document, config: CorpusConfig) -> list[bytes]:
    """What the media of a sample are known by, in any split; every one of them is read.

    A page, with its texts, is one media.
    """
    digest = blake2b(digest_size=16)
    found: list[bytes] = []
    for part in document.parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        frames = len(part.files) if isinstance(part, Pictures) else config.frames
        media = part if isinstance(part, Media) else part(Look(frames, config.fps))
        for tensor in (media.frames, media.features):
            if tensor is not None:
                digest.update(_bytes(tensor))
        if isinstance(part, Clip):
            found.append(_video(part.file))
        elif isinstance(part, Span):
            found.append(part.video.id.encode())
    return [digest.digest(), *found]


@lru_cache(maxsize=1 << 16)
def _video(file: Piece) -> bytes:
    """A video file by its content, as stores name it; one on another machine by its address."""
    if file.size is not None:
        return sha256(file.read()).hexdigest()[:32].encode()
    if is_remote(file.address):
        return file.address.encode()
    with failing(file.address), open(file.address, "rb") as stream:
        return file_digest(stream, "sha256").hexdigest()[:32].encode()


def _bytes(tensor: Tensor) -> bytes:
    return str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()
