"""Which decoder reads a file, and why."""

from __future__ import annotations

import logging
from pathlib import Path

from flamvid.errors import DecodeError, DecoderLost
from flamvid.video.ffmpeg_file import FfmpegFile
from flamvid.video.isolated_file import IsolatedFile, Refused
from flamvid.video.playlist import check_references
from flamvid.video.probe import probe
from flamvid.video.truncation import missing_bytes

__all__ = ["open_video"]

_log = logging.getLogger("flamvid.video")


def open_video(
    path: Path, size: tuple[int, int] | None, timeout: float | None = None
) -> IsolatedFile | FfmpegFile:
    """Open a video file for random access where that can be trusted, else for forward reading.

    The child that indexes the file decides (`worker.py`, by the rules of `policy.py`). What it
    can't open at all, ffmpeg may, or says why not.
    """
    missing = missing_bytes(path)
    if missing:
        raise DecodeError(
            f"{path} is truncated: {missing} bytes are missing at its end; copy it again"
        )
    file: IsolatedFile | FfmpegFile
    if check_references(path):
        info, reason = probe(path, playlist=True), "a playlist is read from its start"
        file = FfmpegFile.open(path, info, size, timeout, reason)
    else:
        try:
            file = IsolatedFile(path, size, timeout)
        except Refused as refused:
            file = FfmpegFile.open(path, refused.info, size, timeout, refused.reason)
        except DecoderLost as error:
            raise DecoderLost(f"{path}: {error}") from error
        except DecodeError as error:
            file = FfmpegFile.open(path, probe(path), size, timeout, str(error))
    _log.info("%s: read by %s: %s", path, file.decoder, file.reason)
    return file
