"""Tar shards, whose members are read in any order: the headers are read once, and no more.

A sample is the members that share a name up to its first dot, as WebDataset groups them: a video
(`mp4`, ...), a picture (`jpg`, ...) or several in their order (`f00.webp`, `f01.webp`, ...), with
`txt` and `json` beside them (the layout of img2dataset and video2dataset); or a page as `json`, its
n-th image as `<n>.jpg` or under its own name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import webdataset

from flamvid.data.corpus import CorpusConfig
from flamvid.data.files import Piece, failing, is_remote, open_file
from flamvid.data.interleaved import is_page, page
from flamvid.data.media import Clip, Pictures
from flamvid.data.samples import Document, Unread
from flamvid.errors import SourceError
from flamvid.video.address import shown
from flamvid.video.pictures import natural

__all__ = ["PICTURES", "VIDEOS", "TarShard", "texts_of"]

VIDEOS = frozenset({"mp4", "webm", "mkv", "mov", "avi", "m4v", "ts", "gif"})
VIDEOS |= {"mpg", "mpeg", "wmv", "flv", "ogv", "3gp"}
PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "avif", "ppm"})
_STILLS = PICTURES | {"gif"}  # a video where videos are asked for, and else its first frame
_TEXT_BYTES = 64 << 20

Group = dict[str, Piece]
"""The members of a sample by what follows its name."""


class TarShard:
    """The samples of one tar file."""

    def __init__(self, address: str, config: CorpusConfig) -> None:
        self.address, self.config = address, config
        self.names: list[str] = []
        self.groups: list[Group] = []
        try:
            with failing(address), open_file(address) as file:
                for group in webdataset.tariterators.group_by_keys(_members(file, address)):
                    self.names.append(group.pop("__key__"))
                    group.pop("__url__")
                    self.groups.append(group)
        except SourceError as error:
            if isinstance(error.__cause__, tarfile.TarError | ValueError):
                said = str(error.__cause__.args[0]).partition(" @ ")[0]
                if "range requests" in said:
                    raise SourceError(
                        f"{shown(address)} is on a server that gives no parts of files, which is "
                        "read up to 5 MB; copy it to this machine"
                    ) from error
                raise SourceError(
                    f"{shown(address)} is no whole tar file ({said}); copy it again"
                ) from error
            raise

    def __len__(self) -> int:
        return len(self.groups)

    def name(self, at: int) -> str:
        """A sample's name in the shard."""
        return self.names[at]

    def document(self, at: int) -> Document:
        """A sample; SourceError where it lacks what its corpus needs."""
        group, name = self.groups[at], self.names[at]
        table = _json(group)
        if is_page(table):
            return page(name, table, lambda n, called: _image(group, n, called))
        if self.config.kind == "interleaved":
            raise SourceError(
                f"{name} has no page: its json has no text_list, nor texts and images"
            )
        texts = texts_of(table, _text(group))
        if not texts:
            raise SourceError(f"{name} has no caption: no txt, and none in its json")
        if self.config.kind == "text":
            return Document(name, texts[:1])
        return Document(name, (self._media(group, name),), texts)

    def _media(self, group: Group, name: str) -> Unread:
        kind = self.config.kind
        videos = [piece for suffix, piece in group.items() if _ending(suffix) in VIDEOS]
        if videos and kind == "videos":
            return Clip(videos[0])
        pictures = sorted((s for s in group if _ending(s) in _STILLS), key=natural)
        if kind == "images" and len(pictures) > 1:  # others may be masks, as `seg.png`
            pictures = [s for s in pictures if "." not in s] or pictures
        if not pictures or kind == "videos" or (kind == "images" and len(pictures) > 1):
            raise SourceError(f"{name} has {', '.join(sorted(group))}; {kind} were expected")
        return Pictures(tuple(group[suffix] for suffix in pictures))


def texts_of(table: Mapping[str, Any], text: str = "") -> tuple[str, ...]:
    """What is said of a sample: all its captions, on one line each."""
    said: list[Any] = [text]
    for key in ("captions", "caption", "text", "TEXT"):
        value = table.get(key)
        said += value if isinstance(value, list) else [value]
    lines = [" ".join(x.split()) for x in said if isinstance(x, str)]
    return tuple(dict.fromkeys(line for line in lines if line))


def _members(file: Any, address: str) -> Iterator[dict[str, Any]]:
    """Where each member lies, for WebDataset to group; the end of the file ends a group."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            # What describes a shard is called `__so__`, as in WebDataset; `._so` are a Mac's.
            name = PurePosixPath(member.name).name
            hidden = name.startswith("._") or (name.startswith("__") and name.endswith("__"))
            if member.isreg() and not member.issparse() and not hidden:
                piece = Piece(address, member.name, member.offset_data, member.size)
                yield {"fname": member.name, "data": piece, "__url__": address}
    yield {}


def _ending(suffix: str) -> str:
    return suffix.rpartition(".")[2]


def _image(group: Group, n: int, called: str) -> Unread | None:
    """The n-th image of a page: by its name, or where none is called so, by its number.

    Where a page has addresses rather than names, numbers come first: `1.jpg` is the second image
    of this page, and what some site calls an image of its own.
    """
    pictures = {suffix: piece for suffix, piece in group.items() if _ending(suffix) in _STILLS}
    path = called.partition("?")[0] if is_remote(called) else called
    named = pictures.get(PurePosixPath(path).name.lower())
    whole = {suffix.partition(".")[0]: suffix for suffix in pictures if suffix.count(".") == 1}
    numbered = pictures.get(whole.get(str(n), ""))
    found = (numbered or named) if is_remote(called) else (named or numbered)
    return None if found is None else Pictures((found,))


def _json(group: Group) -> dict[str, Any]:
    if "json" not in group:
        return {}
    try:
        table = json.loads(_small(group["json"]))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{group['json']} is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise SourceError(f"{group['json']} is no JSON object")
    return table


def _text(group: Group) -> str:
    return _small(group["txt"]).decode("utf-8-sig", "replace") if "txt" in group else ""


def _small(piece: Piece) -> bytes:
    if (piece.size or 0) > _TEXT_BYTES:
        raise SourceError(f"{piece} has {piece.size} bytes; a text has at most {_TEXT_BYTES}")
    return piece.read()
