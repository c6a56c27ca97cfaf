"""A frame of PyAV as it is meant to be seen: turned or mirrored, resized, RGB.

By the filters that the ffmpeg program would use and in its order, so that the pixels are the same.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type

from flamvid.video.reader import Pixels

__all__ = ["Picture"]

Filter = tuple[str, str]


class Picture:
    """What makes pixels of frames; `aspect` is the width of a stored pixel to its height."""

    def __init__(self, size: tuple[int, int] | None, aspect: float, time_base: Fraction) -> None:
        self.size, self.aspect, self._time_base = size, aspect, time_base
        self._graph: tuple[tuple[Any, ...], Graph] | None = None

    def of(self, frame: Any) -> Pixels:
        """uint8 [H,W,3]."""
        key = frame.width, frame.height, frame.format.name, frame.rotation
        if self._graph is None or self._graph[0] != key:
            # Only now: a frame that was asked for it lives on until cycles are collected.
            matrix = frame.side_data.get(Type.DISPLAYMATRIX)
            self._graph = key, self._build(frame, upright(matrix and bytes(matrix)))
        graph = self._graph[1]
        graph.vpush(frame)
        pixels: Pixels = graph.vpull().to_ndarray().astype(np.uint8, copy=False)
        return pixels

    def _build(self, frame: Any, turns: list[Filter]) -> Graph:
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._time_base,
        )
        natural = frame.height, max(1, round(frame.width * self.aspect))
        if any(name == "transpose" for name, _ in turns):
            natural = natural[::-1]
        height, width = self.size or natural
        # swscale's filter knows the frame's matrix and range.
        steps = [*turns, ("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgb24")]
        nodes = [graph.add(name, options) for name, options in steps]
        graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
        return graph


def upright(matrix: bytes | None) -> list[Filter]:
    """ffmpeg's filters for a display matrix: nine numbers of which the first two columns turn."""
    if matrix is None or len(matrix) != 36:
        return []
    m = struct.unpack("=9i", matrix)
    across, down = math.hypot(m[0], m[3]), math.hypot(m[1], m[4])
    if not across or not down:
        return []
    angle = round(math.degrees(math.atan2(m[1] / down, m[0] / across))) % 360
    if angle == 90:
        return [("transpose", "cclock_flip" if m[3] > 0 else "clock")]
    if angle == 270:
        return [("transpose", "clock_flip" if m[3] < 0 else "cclock")]
    if angle == 180:
        return [("hflip", "")] * (m[0] < 0) + [("vflip", "")] * (m[4] < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip", "")] if m[4] < 0 else []
