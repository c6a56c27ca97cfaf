"""Media of a corpus that are decoded when they are wanted, through flamvid.video alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from flamvid import video
from flamvid.data.files import Piece, is_remote
from flamvid.data.samples import Look, Media, Part
from flamvid.errors import FlamvidError, InputError, SourceError
from flamvid.video.address import shown
from flamvid.video.pictures import PictureFile, read_picture
from flamvid.video.sample import Fps, thinned

__all__ = ["Clip", "Pictures", "part_of"]


@dataclass(frozen=True, slots=True)
class Pictures:
    """A picture, or the frames of a clip in their order."""

    files: tuple[PictureFile, ...]

    def __call__(self, look: Look) -> Media:
        """At most `look.frames` of them, evenly spread; SourceError for a damaged one."""
        places = range(len(self.files))
        chosen = places if len(places) <= look.frames else thinned(len(places), look.frames)
        frames = [read_picture(self.files[at]) for at in chosen]
        if len({frame.shape for frame in frames}) > 1:
            raise SourceError(f"{self.files[0]}: frames of one clip must agree in size")
        return Media(np.array([at / look.fps for at in chosen]), torch.stack(frames))


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a video, in seconds; or all of it."""

    file: Piece
    start: float | None = None
    end: float | None = None

    def __call__(self, look: Look) -> Media:
        """`look.frames` frames at `look.fps`, from a random place; fewer of a shorter clip."""
        with self.file.as_file() as name, self._named(name), video.open_recorded(name) as source:
            length = float(source.pts[-1] + source.durations[-1])
            first, last = self.start or 0.0, length if self.end is None else min(self.end, length)
            first, last = part_of(first, last, look)
            try:
                sampling = Fps(look.fps)
                places = sampling.indices(source.pts, source.durations, first, last)
            except InputError as error:
                raise SourceError(f"{shown(str(self.file))}: {error}") from error
            frames = source.read([int(place) for place in places[: look.frames]])
        return Media(frames.pts_seconds, frames.pixels)

    @contextmanager
    def _named(self, copy: str) -> Iterator[None]:
        """Errors about a copy of the file are about the file."""
        try:
            yield
        except FlamvidError as error:
            said = str(error)
            if copy in said and copy != self.file.address:
                raise SourceError(said.replace(copy, shown(str(self.file)))) from error
            raise


def part_of(first: float, last: float, look: Look) -> tuple[float, float]:
    """As long a part of [first, last) as the frames take."""
    spare = last - first - look.frames / look.fps
    if spare <= 0:
        return first, last
    at = first + spare * (look.rng.random() if look.rng else 0.5)
    return at, at + look.frames / look.fps


def is_afar(part: Part) -> bool:
    """Whether this is a picture of another machine; of clips too many frames would be in memory."""
    if not isinstance(part, Pictures) or len(part.files) > 1:
        return False
    [file] = part.files
    return isinstance(file, Piece) and is_remote(file.address)
