"""Any source to frames with their times; the only room that knows decord and ffmpeg."""

from __future__ import annotations

from flamvid.video.source import Source, open_source

open = open_source

__all__ = ["Source", "open", "open_source"]
