"""ffmpeg's command for a live source: every frame, upright, of square pixels, with its time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ffmpeg

from flamvid.errors import InputError
from flamvid.video.address import Kind, classify, input_options, local_path
from flamvid.video.playlist import check_references
from flamvid.video.policy import MOST_PIXELS
from flamvid.video.probe import allowed
from flamvid.video.record import Record

__all__ = ["FAR_LONGER", "HOLE", "Wishes", "live_graph"]

_PROMPT = frozenset({Kind.RTSP, Kind.RTMP, Kind.CAMERA})  # cameras: we hold no frame back
HOLE = 2.0  # seconds between two frames from which on it may be that some are missing,
FAR_LONGER = 8.0  # and are, if it is so many times as long as between the two before
_LONGEST_HOLD = 3600.0  # seconds; what is shown for longer in a file is an error of its clock


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a live source is to be read.

    size: height and width of its frames; None leaves them. fps: the frame shown at each multiple
    of 1 / fps seconds, chosen before it is scaled. timeout: seconds after which ffmpeg gives up a
    connection. hwaccel: ffmpeg's name of a hardware decoder, or `auto`. realtime: read no faster
    than it plays, as from a camera. record: where to keep what is read.
    """

    size: tuple[int, int] | None = None
    fps: float | None = None
    timeout: float = 15.0
    hwaccel: str | None = None
    realtime: bool = False
    record: Record | None = None

    def __post_init__(self) -> None:
        if self.hwaccel is not None and not re.fullmatch(r"[a-z0-9_]{1,32}", self.hwaccel):
            raise InputError(
                f"hwaccel is {self.hwaccel!r}; must be a name that ffmpeg knows: auto, cuda, "
                "vaapi, qsv, videotoolbox, ..."
            )


def live_graph(source: str, wishes: Wishes) -> Callable[[int], Any]:
    """The command, by the number of the pipe for times."""
    kind = classify(source)
    name, options = _input(source, kind, wishes)
    # Broadcasts are interlaced at times. To undo it takes the next frame: not for cameras.
    filters = [] if kind in _PROMPT else ["bwdif=send_frame:deint=interlaced"]
    height, width = wishes.size or (
        "ih",
        "if(gt(sar\\,0)*gt(abs(sar-1)\\,0.01)\\,max(1\\,round(iw*sar))\\,iw)",
    )
    if wishes.fps is not None:
        filters += _ticks(wishes.fps, HOLE if kind is not Kind.FILE else _LONGEST_HOLD)
    filters += [f"scale={width}:{height}:flags=bicubic", "format=rgb24|rgba"]

    def graph(times: int) -> Any:
        stream = ffmpeg.input(name, **options)
        output = stream.output(
            "pipe:1",
            vf=",".join(filters),
            vcodec="pam",
            format="image2pipe",
            fps_mode="passthrough",
            flush_packets=1,
            stats_enc_post=f"pipe:{times}",
            # pts, time base and number are the decoder's, whatever the filters make of them.
            stats_enc_post_fmt="{ptsi} {tbi} {size} {ni}",
            an=None,
            sn=None,
            dn=None,
        )
        if wishes.record is not None:
            output = ffmpeg.merge_outputs(output, wishes.record.output(stream))
        quiet = ("-hide_banner", "-nostats", "-nostdin", "-loglevel", "level+info")
        return output.global_args(*quiet, "-max_error_rate", "1")

    return graph


def _input(source: str, kind: Kind, wishes: Wishes) -> tuple[str, dict[str, Any]]:
    """What ffmpeg opens, and how."""
    options: dict[str, Any]
    if kind is Kind.FILE:
        path = local_path(source)
        name = f"file:{path}"
        options = {"max_pixels": MOST_PIXELS, **allowed(check_references(path))}
    else:
        name, found = input_options(source, wishes.timeout)
        options = dict(found)
    # By frames, threads hold one frame back each: two are a compromise, cameras get none.
    # Nor do cameras wait for the second of video that a rate is guessed from.
    options |= {"thread_type": "slice"} if kind in _PROMPT else {"threads": 2}
    if kind in _PROMPT:
        options["fpsprobesize"] = 0
    if wishes.hwaccel is not None:
        options["hwaccel"] = wishes.hwaccel
    if wishes.realtime:
        options["re"] = None
    return name, options


def _ticks(fps: float, hole: float) -> list[str]:
    """Filters that choose the frame shown at each tick, on a clock that always rises.

    A step back counts as the step before it, and so does a hole: one of over `hole` seconds that
    is far longer than the step before. Then ffmpeg's fps filter, which waits for its time to come,
    neither waits for hours nor fills hours with one frame.
    """
    usual = f"if(ld(1),max({hole},{FAR_LONGER}*ld(1)*TB),{_LONGEST_HOLD})"
    ahead = f"st(1,ld(0));st(0,PTS-PREV_INPTS);if(lte(ld(0)*TB,{usual}),ld(0),max(1,ld(1)))"
    rising = f"if(N,PREV_OUTPTS+if(gt(PTS,PREV_INPTS),{ahead},max(1,ld(0))),0)"
    escaped = rising.replace(",", "\\,").replace(";", "\\;")
    # Times are rounded up to ticks: a tick takes the last frame that begins at or before it.
    return [f"setpts={escaped}", f"fps={fps!r}:round=up:start_time=0"]
