"""Which decoder reads a file, and why."""

from __future__ import annotations

from pathlib import Path

from flamvid.errors import DecodeError
from flamvid.video.decord_file import DecordFile
from flamvid.video.ffmpeg_file import FfmpegFile
from flamvid.video.probe import probe
from flamvid.video.truncation import missing_bytes

__all__ = ["open_video"]

# Random access lies in these: streams without an index, and MPEG-TS with B-frames above all.
_FORWARD_ONLY = frozenset({"mpegts", "mpeg", "hls", "flv", "gif", "avi", "ogg", "h264", "hevc"})


def open_video(path: Path, size: tuple[int, int] | None) -> DecordFile | FfmpegFile:
    """Open a video file with decord where its random access can be trusted, else with ffmpeg."""
    info = probe(path)
    missing = missing_bytes(path)
    if missing:
        raise DecodeError(
            f"{path} is truncated: {missing} bytes are missing at its end; copy it again"
        )
    # decord can't be told which video stream to read.
    if info.video_streams == 1 and _FORWARD_ONLY.isdisjoint(info.container.split(",")):
        file = DecordFile.open(path, info, size)
        if file is not None:
            return file
    return FfmpegFile.open(path, info, size)
