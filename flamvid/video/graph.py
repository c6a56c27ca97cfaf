"""ffmpeg's filters from a file to frames as they are meant to be seen, built by ffmpeg-python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg

from flamvid.types import VideoInfo
from flamvid.video.address import input_options
from flamvid.video.probe import allowed

__all__ = ["pictures", "shown"]

_CONNECTION = 15.0  # seconds without a byte after which a web server is given up


def shown(where: Path | str, info: VideoInfo) -> Any:
    """The frames that a player would show, upright and progressive: one out for each one in.

    where: a file, or the address of one on the web.
    """
    if isinstance(where, str):
        name, options = input_options(where, _CONNECTION)
    else:
        name, options = f"file:{where}", {**allowed("hls" in info.container.split(","))}
    graph = ffmpeg.input(name, **options)[str(info.stream)]
    if info.interlaced:
        graph = graph.filter("bwdif", mode="send_frame", deint="interlaced")
    return graph


def pictures(
    where: Path | str, info: VideoInfo, size: tuple[int, int], runs: Sequence[tuple[int, int]]
) -> Any:
    """Frames in these runs of numbers (all where there are none), of standard range, resized."""
    graph = shown(where, info)
    if runs:
        graph = graph.filter("select", "+".join(f"between(n,{a},{b})" for a, b in runs))
    if info.transfer:
        # Linear light, BT.709's colours, then the highlights bent into what a screen can show.
        graph = graph.filter("zscale", transfer="linear", npl=100)
        graph = graph.filter("format", "gbrpf32le")
        graph = graph.filter("zscale", primaries="bt709")
        graph = graph.filter("tonemap", "hable", desat=0)
        graph = graph.filter("zscale", transfer="bt709", matrix="bt709", range="tv")
        graph = graph.filter("format", "yuv420p")
    height, width = size
    return graph.filter("scale", width, height, flags="bicubic")
