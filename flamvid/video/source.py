"""One way in: what names a source to frames with their times."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import Kind, classify, local_path, shown
from flamvid.video.animation import ANIMATIONS, open_image
from flamvid.video.archive import is_archive, open_archive
from flamvid.video.decode import open_video
from flamvid.video.ffmpeg_file import FfmpegFile
from flamvid.video.live import LiveSource, is_endless, open_live
from flamvid.video.pictures import (
    FOLDER_FPS,
    PICTURES,
    is_sequence,
    open_folder,
    open_sequence,
)

__all__ = ["Source", "check_file", "open_recorded", "open_source"]

_log = logging.getLogger("flamvid.video")


class Source(Protocol):
    """A recording: frames with their times, in any order; a context manager.

    `pts` and `durations` are float64 [N], in seconds from the first displayable frame. `decoder`
    and `reason` say what reads it, and why that.
    """

    @property
    def info(self) -> VideoInfo: ...
    @property
    def pts(self) -> NDArray[np.float64]: ...
    @property
    def durations(self) -> NDArray[np.float64]: ...
    @property
    def decoder(self) -> str: ...
    @property
    def reason(self) -> str: ...

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places of `pts`, in the order asked, repeats allowed."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


def open_source(
    source: str | PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
    fps: float = FOLDER_FPS,
) -> Source | LiveSource:
    """Open anything that has frames: a `Source` where it is recorded, else a `LiveSource`.

    Recorded: a video file, a picture, a folder, tar (`shard.tar#sample`) or numbered sequence
    (`img_%04d.png`) of pictures, a web address of something that ends. Live, and read forward only:
    streams (rtsp, rtmp, HLS without an end, udp, tcp, srt), standard input (`-`), cameras
    (`cam:0`).

    size: height and width that frames are resized to while they are decoded, which costs less than
    to decode them whole; None leaves them as they are. timeout: seconds that opening or one read
    may take; by default it grows with the source. fps: of pictures that have no time of their own.
    """
    kind = classify(source)
    if kind is Kind.FILE:
        return _open_local(local_path(source), size, timeout, fps)
    assert isinstance(source, str)
    live = open_live(source, size=size, timeout=timeout or 15.0)
    if kind in (Kind.HTTP, Kind.HLS) and live.info is not None and not is_endless(live.info):
        live.close()
        reason = "what comes over a network is read from its start"
        return FfmpegFile.open(source, live.info, size, timeout, reason)
    _log.info("%s: read by ffmpeg: live, forward only", shown(source))
    return live


def open_recorded(
    source: str | PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    timeout: float | None = None,
    fps: float = FOLDER_FPS,
) -> Source:
    """As `open_source`; `SourceError` for what can't be wound back."""
    opened = open_source(source, size=size, timeout=timeout, fps=fps)
    if isinstance(opened, LiveSource):
        opened.close()
        raise SourceError(
            f"{shown(source)} is live and can't be wound back; record it to a file first"
        )
    return opened


def _open_local(
    where: Path, size: tuple[int, int] | None, timeout: float | None, fps: float
) -> Source:
    if is_archive(where) and not where.is_dir():
        return open_archive(where, size, fps)
    if is_sequence(where):
        return open_sequence(where, size, fps)
    if stat.S_ISDIR(_status(where).st_mode):
        return open_folder(where, size, fps)
    check_file(where)
    if where.suffix.lower() in PICTURES | ANIMATIONS:
        return open_image(where, size)
    return open_video(where, size, timeout)


def check_file(where: Path) -> None:
    """`SourceError` for what is no file with something in it that we may read."""
    status = _status(where)
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{where} is a folder, which has no time of its own; give a video")
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{where} is neither a file nor a folder; give a video, image or folder")
    if not os.access(where, os.R_OK):
        raise SourceError(f"{where} can't be read: permission denied")
    if status.st_size == 0:
        raise SourceError(f"{where} is empty (0 bytes); the copy or download has failed")


def _status(where: Path) -> os.stat_result:
    try:
        return where.stat()
    except FileNotFoundError:
        raise SourceError(f"{where} does not exist; check the path") from None
    except OSError as error:
        raise SourceError(f"{where} can't be opened: {error.strerror}") from error
