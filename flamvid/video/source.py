"""One way in: a path to a source that knows its times and reads frames by index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.decode import open_video
from flamvid.video.pictures import PICTURES, open_folder, open_picture

__all__ = ["Source", "open_source"]


class Source(Protocol):
    """Frames with their times; a context manager.

    `pts` and `durations` are float64 [N], in seconds from the first displayable frame.
    """

    @property
    def info(self) -> VideoInfo: ...
    @property
    def pts(self) -> NDArray[np.float64]: ...
    @property
    def durations(self) -> NDArray[np.float64]: ...

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places of `pts`, in the order asked, repeats allowed."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


def open_source(
    path: str | PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
) -> Source:
    """Open a video file, a still image, or a folder of frames.

    size: height and width that frames are resized to while they are decoded, which costs less
    than to decode them whole; None leaves them as they are. timeout: seconds that opening or one
    read may take; by default it grows with the file.
    """
    where = Path(path)
    try:
        status = where.stat()
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error.strerror}") from error
    if where.is_dir():
        return open_folder(where, size)
    if not where.is_file():
        raise SourceError(f"{path} is neither a file nor a folder; give a video, image or folder")
    if not os.access(where, os.R_OK):
        raise SourceError(f"{path} can't be read: permission denied")
    if status.st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes); the copy or download has failed")
    if where.suffix.lower() in PICTURES:
        return open_picture(where, size)
    return open_video(where, size, timeout)
