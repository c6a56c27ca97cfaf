"""What an open container says about its video, by PyAV. Runs in the decode child."""

from __future__ import annotations

from typing import Any

from flamvid.errors import DecodeError
from flamvid.types import VideoInfo
from flamvid.video.policy import check_size, pixel_aspect

__all__ = ["describe"]

_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}  # AVCOL_TRC_*, those that mean HDR
_INTERLACED = 2  # AVFieldOrder: 0 unknown, 1 progressive, the rest interlaced


def describe(path: str, container: Any, *, rotation: bool = False) -> VideoInfo:
    """Facts of the largest video stream that is no cover art; `DecodeError` without any.

    rotation: decode the first frame, which alone knows how it is to be turned. It costs as much as
    a tenth of captioning a short clip, and readers turn frames by themselves.
    """
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if not streams:
        raise DecodeError("no video stream")
    stream = max(streams, key=lambda s: s.width * s.height)
    context = stream.codec_context
    if context is None:
        raise DecodeError("a codec that av does not know")
    check_size(path, stream.width, stream.height)
    turned = _rotation(container, stream) if rotation else 0
    return _info(path, container, stream, len(streams), turned)


def _info(path: str, container: Any, stream: Any, count: int, rotation: int) -> VideoInfo:
    aspect = pixel_aspect(float(stream.sample_aspect_ratio or 0), 1)
    width, height = max(1, round(stream.width * aspect)), stream.height
    if rotation % 180:
        width, height = height, width
    duration = container.duration / 1e6 if container.duration else 0.0
    if not duration and stream.duration:
        duration = float(stream.duration * stream.time_base)
    return VideoInfo(
        path=path,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=width,
        height=height,
        fps=float(stream.average_rate or 0),
        duration=duration,
        frames=stream.frames,
        rotation=rotation,
        stream=stream.index,
        video_streams=count,
        pixel_format=stream.codec_context.pix_fmt or "",
        pixel_aspect=aspect,
        interlaced=int(stream.codec_context.field_order or 0) >= _INTERLACED,
        start=float((stream.start_time or 0) * stream.time_base),
        transfer=_TRANSFERS.get(int(stream.codec_context.color_trc or 0), ""),
    )


def _rotation(container: Any, stream: Any) -> int:
    """Degrees clockwise; 0 where no frame can be decoded, which reading will complain of."""
    try:
        first = next(container.decode(stream), None)
    except (OSError, ValueError):
        first = None
    return 0 if first is None else round(-first.rotation) % 360


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)
