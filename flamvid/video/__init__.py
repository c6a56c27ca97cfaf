"""Any source to frames with their times; the only room that knows decord, av and ffmpeg.

Names are imported when first asked for: decode children import from this package, and must start
without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamvid.video.source import Source, open_recorded, open_source
    from flamvid.video.source import open_recorded as open

__all__ = ["Source", "open", "open_recorded", "open_source"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    source = importlib.import_module("flamvid.video.source")
    return getattr(source, "open_recorded" if name == "open" else name)
