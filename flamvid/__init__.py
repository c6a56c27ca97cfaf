"""Understand video, live or recorded, with the Flamingo design."""

from __future__ import annotations

__version__ = "0.1.0"
