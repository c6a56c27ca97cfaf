"""Any corpus as tar shards, which are read without a file for each sample."""

from __future__ import annotations

import glob
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image
from torch import Tensor

from flamvid.data.ahead import ahead
from flamvid.data.collate import Bad
from flamvid.data.corpus import CorpusConfig
from flamvid.data.files import Held, suffix_of
from flamvid.data.media import Clip, Pictures, is_afar
from flamvid.data.samples import Document, Look, Part
from flamvid.data.sources import Samples, open_corpus
from flamvid.data.tar import VIDEOS
from flamvid.errors import FlamvidError, InputError, SourceError
from flamvid.video.pictures import PictureFile, opened, read_picture

__all__ = ["pack", "unpacked"]

_QUALITY = 95
_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg"}  # MPO: a JPEG with others behind it, as phones take


def pack(
    config: CorpusConfig,
    root: Path,
    out: Path,
    per_shard: int = 1000,
    videos: bool = False,
    count: Callable[[int, int], None] | None = None,
) -> Iterator[Path | Bad]:
    """Write a corpus to `out/<name>-00000.tar` and so on, each whole or not at all.

    Raises InputError where there are such shards already: those of two corpora would be mixed up.
    Gives the path of each shard when it is written, and the samples that can't be read, which are
    left out. Pictures are copied as they are. Of a clip its frames are written, as many as the
    corpus says, from its middle; with `videos` the file itself, where the clip is all of it.
    count: told at the end how many samples there are, and how many images of pages are missing.
    """
    unpacked(config, out)
    samples = open_corpus(replace(config, lanes=1, shuffle=1), root)  # read one after the other
    out.mkdir(parents=True, exist_ok=True)
    bad: list[Bad] = []
    counts: Counter[str] = Counter()
    packed = _packed(samples, config, videos, bad, counts)
    for number, first in enumerate(packed):
        path = out / f"{config.name}-{number:05d}.tar"
        _write(path, first, islice(packed, per_shard - 1))
        yield path
        yield from bad
        bad.clear()
    yield from bad
    if count is not None:
        count(counts["samples"], counts["missing"])


def unpacked(config: CorpusConfig, out: Path) -> None:
    """See to it that the folder has no shards of this corpus; raises InputError where it does."""
    if older := sorted(out.glob(f"{glob.escape(config.name)}-[0-9]*.tar")):
        raise InputError(
            f"{out} has shards of {config.name} already ({older[0].name}); "
            "remove them, or give another folder"
        )


def _write(path: Path, first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> None:
    part = path.with_suffix(".part")
    try:
        # An open file, never a name: webdataset runs `pipe:` names as commands.
        with (
            part.open("wb") as file,
            webdataset.TarWriter(file, encoder=False, mtime=0) as writer,
        ):
            for members in chain([first], rest):
                writer.write(members)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _packed(
    samples: Samples, config: CorpusConfig, videos: bool, bad: list[Bad], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    places = ((shard, at) for shard, size in enumerate(samples.counts) for at in range(size))

    def members_of(document: Document) -> tuple[dict[str, bytes], int]:
        """What a shard holds of a sample, and how many images it lacks."""
        return (_pair(document, config, videos), 0) if document.is_pair else _page(document)

    ready = ahead(places, lambda at: samples.document(*at), members_of, _afar, config.kind)
    for place, made in ready:
        try:
            members, missing = made()
        except FlamvidError as error:
            bad.append(Bad(samples.name(*place), str(error)))
            continue
        yield {"__key__": f"{counts['samples']:09d}", **members}
        counts["samples"] += 1
        counts["missing"] += missing


def _afar(document: Document) -> bool:
    """Whether it may wait for other machines."""
    return not document.is_pair or any(map(is_afar, document.parts))


def _pair(document: Document, config: CorpusConfig, videos: bool) -> dict[str, bytes]:
    [part] = document.parts
    about: dict[str, Any] = {"id": document.id, "captions": document.texts}
    members: dict[str, bytes] = {}
    if isinstance(part, Pictures):
        for n, file in enumerate(part.files):
            number = f"f{n:03d}." if len(part.files) > 1 else ""
            kind, data = _picture(file)
            members[f"{number}{kind}"] = data
    elif videos and isinstance(part, Clip):
        if part.start is not None or part.end is not None:
            raise SourceError(f"{document.id} is a part of a video; pack frames of it instead")
        suffix = suffix_of(part.file.member or part.file.address)[1:]
        members[suffix if suffix in VIDEOS else "mp4"] = part.file.read()
    elif isinstance(part, Clip):
        media = part(Look(config.frames, config.fps))
        assert media.frames is not None
        about["pts"] = [round(float(t), 6) for t in media.pts]
        for n, frame in enumerate(media.frames):
            members[f"f{n:03d}.jpg"] = _jpeg(frame)
    else:
        raise SourceError(f"{document.id} has features, no frames; pack what they were made of")
    return {**members, "json": _dumped(about)}


def _page(document: Document) -> tuple[dict[str, bytes], int]:
    """A page in OBELICS's layout, its n-th image as `<n>.jpg`."""
    texts: list[str | None] = []
    images: list[str | None] = []
    members: dict[str, bytes] = {}
    missing = document.missing
    for part in document.parts:
        image = None if isinstance(part, str) else _image(part, members)
        if isinstance(part, str) or image is not None:
            texts.append(part.strip() if isinstance(part, str) else None)
            images.append(image)
        else:
            missing += 1
    if missing and not members:
        raise SourceError(f"{document.id} has none of its {missing} images")
    table = {"id": document.id, "texts": texts, "images": images}
    return {**members, "json": _dumped(table)}, missing


def _image(part: Part, members: dict[str, bytes]) -> str | None:
    """The name of an image among a page's members; None where it is gone, as half the web is."""
    assert isinstance(part, Pictures)
    [file] = part.files
    try:
        kind, data = _picture(file)
    except FlamvidError:
        return None
    name = f"{len(members)}.{kind}"
    members[name] = data
    return name


def _picture(file: PictureFile) -> tuple[str, bytes]:
    """What a picture is, by its bytes: its name may end in anything; and these, which are whole."""
    with file.open("rb") as stream:
        held = Held(stream.read(), str(file))
    with opened(held) as image:
        kind = (image.format or "jpeg").lower()
    read_picture(held)
    return _SUFFIXES.get(kind, kind), held.data


def _jpeg(frame: Tensor) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(data, "jpeg", quality=_QUALITY)
    return data.getvalue()


def _dumped(table: dict[str, Any]) -> bytes:
    return json.dumps(table, ensure_ascii=False).encode()
