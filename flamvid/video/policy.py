"""What may be opened, and by which decoder: rules alone, without a decoder in sight.

A media file is hostile: some formats are lists of other files to open, and a header of a few bytes
can claim a picture that fills the memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError

__all__ = [
    "FORMATS",
    "MOST_PIXELS",
    "PROTOCOLS",
    "check_size",
    "forward_reason",
    "has_alpha",
    "pixel_aspect",
    "pts_reason",
]

PROTOCOLS = "file,pipe"  # a local file may not make ffmpeg reach for the network

# Demuxers that read the one file they are given. Not here: concat, dash, image2, sdp, tty and the
# like, which open what a file tells them to; hls only for a playlist that was looked through.
FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,mjpeg,flv,live_flv,gif,apng,ogg,asf,wtv,mxf,"
    "nut,ivf,h264,hevc,vvc,av1,obu,rm,swf,dv,gxf,nsv,yuv4mpegpipe,flic,"
    # Sound, so that its error can say what it is.
    "wav,mp3,aac,flac,aiff"
)

MOST_PIXELS = 8192 * 4352  # 8K in either of its shapes, with what codecs pad

# Without an index, or with one that seeks beside the frame (MPEG-TS with B-frames above all).
_FORWARD_ONLY = frozenset(
    {"mpegts", "mpeg", "mpegvideo", "hls", "flv", "live_flv", "gif", "apng", "ogg", "h264", "hevc"}
    | {"m4v", "mjpeg", "nut", "asf"}
)
_HDR = frozenset({"smpte2084", "arib-std-b67"})
_ALPHA = ("rgba", "bgra", "argb", "abgr", "yuva", "gbrap", "ya8", "ya16", "pal8")


def check_size(name: str, width: int, height: int) -> None:
    """Refuse a picture over the cap, before anything is allocated for it."""
    if width * height > MOST_PIXELS:
        raise DecodeError(
            f"{name} has frames of {width}x{height}; at most {MOST_PIXELS} pixels are decoded "
            "(8K): scale it down with ffmpeg first"
        )


def pixel_aspect(width: float, height: float) -> float:
    """Width of a stored pixel to its height; 1 where nobody would see the difference.

    Encoders write 1999/2000 and the like when they round a size; to resample for that blurs.
    """
    aspect = width / height if width > 0 and height > 0 else 1.0
    return aspect if abs(aspect - 1) > 0.01 else 1.0


def has_alpha(pixel_format: str) -> bool:
    """Whether the pixel format carries transparency."""
    return pixel_format.startswith(_ALPHA)


def forward_reason(
    container: str, *, transfer: str, interlaced: bool, pixel_format: str
) -> str | None:
    """Why a file must be read forward by ffmpeg; None where random access may be tried."""
    names = container.split(",")
    if found := sorted(_FORWARD_ONLY.intersection(names)):
        return f"random access in {found[0]} gives other frames than playing it"
    if transfer in _HDR:
        return f"HDR ({transfer}) must be tone-mapped"
    if interlaced:
        return "interlaced frames must be deinterlaced"
    if has_alpha(pixel_format):
        return f"transparency ({pixel_format}) must be put on white"
    return None


def pts_reason(pts: NDArray[np.float64], counted: int) -> str | None:
    """Why random access by these raw pts (seconds) would give wrong frames; None if it is right.

    counted: how many frames the container says it has, 0 where it does not say.
    """
    if len(pts) == 0:
        return "the container lists no frames"
    if not np.isfinite(pts).all() or np.abs(pts).max() > 1e7:
        return "frames without pts"
    if pts[0] < -1e-6:
        return "an edit list hides the first frames"
    if (np.diff(pts) <= 0).any():
        return "pts that do not rise"
    if counted and abs(counted - len(pts)) > 1:
        return f"the container counts {counted} frames, its index {len(pts)}"
    return None
