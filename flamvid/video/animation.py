"""Animated pictures: GIF, WebP, PNG and AVIF whose frames have times.

The times are read from the file's own blocks without decoding, and are those that ffmpeg gives.
Pillow decodes forward, and applies disposal and blending; only what is asked for is kept.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from flamvid.errors import DecodeError, FlamvidError
from flamvid.types import Frames, VideoInfo
from flamvid.video.pictures import PictureFrames, decoding, fit, flatten, header, open_picture
from flamvid.video.policy import check_size

__all__ = ["ANIMATIONS", "AnimationFrames", "is_animated", "open_animation", "open_image"]

ANIMATIONS = frozenset({".gif", ".apng", ".avifs"})  # beside the names of stills, which may move

_MOST_BYTES = 256 << 20  # of a file: it is held while it is open
_MOST_FRAMES = 100_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(slots=True, eq=False)
class AnimationFrames:
    """An animation, `data` the bytes of its file; to read backwards is to decode from the start."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    data: bytes
    size: tuple[int, int] | None
    image: Image.Image | None = None  # the decoder, at the frame that was read last

    decoder = "pillow"
    reason = "an animated picture"

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places, on white, uint8, in the order asked."""
        at = np.asarray(indices, dtype=np.int64)
        shape = self.size or (self.info.height, self.info.width)
        pixels = torch.empty((len(at), 3, *shape), dtype=torch.uint8)
        image, self.image = self.image, None  # after an error its state is anybody's guess
        with decoding(self.info.path):
            for i in np.unique(at).tolist():
                # Pillow's own way back fails on some PNGs: begin afresh.
                if image is None or i < image.tell() - _skipped(image):
                    image = header(io.BytesIO(self.data), self.info.path)
                image.seek(i + _skipped(image))
                check_size(self.info.path, *image.size)
                pixels[torch.from_numpy(at == i)] = fit(flatten(image), self.size)
        self.image = image
        return Frames(pixels, self.pts[at], self.durations[at])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.image = None


def open_image(path: Path, size: tuple[int, int] | None) -> PictureFrames | AnimationFrames:
    """A picture that moves or one that is still, by what the file holds and not by its name."""
    return open_animation(path, size) if is_animated(path) else open_picture(path, size)


def is_animated(path: Path) -> bool:
    """Whether the file is a picture of two frames or more; its first blocks tell.

    One that ends before its second frame does counts, so that it is not taken for a still.
    """
    found = 0
    try:
        with path.open("rb") as file:
            for _ in islice(_durations(file, str(path)), 2):
                found += 1
    except (EOFError, struct.error):
        return found > 0
    except (OSError, FlamvidError):
        return False  # to open it as a still says what is wrong
    return found == 2


def open_animation(path: Path, size: tuple[int, int] | None) -> AnimationFrames:
    """An animated picture; `DecodeError` where the file ends before its frames do."""
    with decoding(path), path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise DecodeError(
            f"{path} is larger than {_MOST_BYTES >> 20} MiB; make a video of it with ffmpeg first"
        )
    try:
        found = list(islice(_durations(io.BytesIO(data), str(path)), _MOST_FRAMES + 1))
    except (EOFError, struct.error) as error:
        raise DecodeError(f"{path} ends within a frame: truncated; copy it again") from error
    if len(found) > _MOST_FRAMES:
        raise DecodeError(
            f"{path} has over {_MOST_FRAMES} frames; make a video of it with ffmpeg first"
        )
    with decoding(path), header(io.BytesIO(data), str(path)) as image:
        codec = (image.format or "").lower()
        _, height, width = flatten(image).shape
    ends = np.round(np.cumsum(found), 9)
    pts = np.append(0.0, ends[:-1])
    info = VideoInfo(
        path=str(path),
        container=codec,
        codec=codec,
        width=width,
        height=height,
        fps=len(found) / float(ends[-1]),
        duration=float(ends[-1]),
        frames=len(found),
    )
    return AnimationFrames(info, pts, ends - pts, data, size)


def _skipped(image: Image.Image) -> int:
    """Pictures before the first frame: a PNG may begin with one for those who can't animate."""
    return int(getattr(image, "default_image", False))


def _durations(file: BinaryIO, name: str) -> Iterator[float]:
    """How long each frame is shown; nothing for what is no animation."""
    head = file.read(32)
    file.seek(0)
    if head[:4] == b"GIF8":
        return _gif(file, name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(file)
    if head[:8] == _PNG:
        return _png(file)
    if head[4:8] == b"ftyp" and b"avis" in head[8:]:
        return _avif(file, name)
    return iter(())


def _gif(file: BinaryIO, name: str) -> Iterator[float]:
    width, height, flags = struct.unpack("<6x2HB2x", _take(file, 13))
    check_size(name, width, height)
    _skip_palette(file, flags)
    delay = 0  # in hundredths; it holds until another is given
    while (block := file.read(1)) not in (b"", b";"):
        if block == b"!":
            control = _take(file, 1) == b"\xf9"
            while length := _take(file, 1)[0]:
                said = _take(file, length)
                if control and length >= 3:
                    delay = int.from_bytes(said[1:3], "little")
        elif block == b",":
            left, top, width, height, flags = struct.unpack("<4HB", _take(file, 9))
            check_size(name, left + width, top + height)
            _skip_palette(file, flags)
            _take(file, 1)
            while length := _take(file, 1)[0]:
                file.seek(length, io.SEEK_CUR)
            yield (delay or 10) / 100


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)


def _webp(file: BinaryIO) -> Iterator[float]:
    end = 8 + int.from_bytes(_take(file, 12)[4:8], "little")
    while file.tell() < end:
        kind, length = struct.unpack("<4sI", _take(file, 8))
        after = file.tell() + length + length % 2
        if kind == b"ANMF":
            milliseconds = int.from_bytes(_take(file, 16)[12:15], "little")
            # Players do not show a frame for less.
            yield milliseconds / 1000 if milliseconds > 10 else 0.1
        file.seek(after - 1)
        _take(file, 1)


def _png(file: BinaryIO) -> Iterator[float]:
    file.seek(8)
    moves = False
    while True:
        length, kind = struct.unpack(">I4s", _take(file, 8))
        after = file.tell() + length + 4
        if kind == b"IEND" or (kind == b"IDAT" and not moves):
            return
        moves = moves or kind == b"acTL"
        if kind == b"fcTL" and moves:
            above, below = struct.unpack(">20x2H", _take(file, 24))
            yield above / (below or 100) if above else 1 / 15  # 0: as ffmpeg shows it
        file.seek(after - 1)
        _take(file, 1)


def _avif(file: BinaryIO, name: str) -> Iterator[float]:
    with decoding(name), header(file, name) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            image.load()
            yield image.info["duration"] / 1000 or 0.1


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data
