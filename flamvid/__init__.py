"""Understand video, live or recorded, with the Flamingo design."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamvid.api import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`flamvid.load`, imported when first asked for: `flamvid --help` must not load torch."""
    if name == "load":
        from flamvid.api import load

        return load
    raise AttributeError(f"module 'flamvid' has no attribute {name!r}")
