"""Understand video, live or recorded, with the Flamingo design."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamvid.api import load
    from flamvid.models.flamingo import Flamingo

__all__ = ["Flamingo", "__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`load` and `Flamingo`, imported when asked for: `flamvid --help` must not load torch."""
    if name == "load":
        from flamvid.api import load

        return load
    if name == "Flamingo":
        from flamvid.models.flamingo import Flamingo

        return Flamingo
    raise AttributeError(f"module 'flamvid' has no attribute {name!r}")
