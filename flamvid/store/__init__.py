"""Features of many videos in one file: written once, read by many. Only this room knows lmdb.

Names are imported when first asked for: the command line starts without numpy and lmdb.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flamvid.store.clips import StoreClips
    from flamvid.store.reader import Failure, FeatureStore, Snapshot, StoredVideo
    from flamvid.store.schema import Provenance, VideoRecord
    from flamvid.store.writer import StoreWriter, VideoWriter

_HOMES = {
    "Failure": "reader",
    "FeatureStore": "reader",
    "Provenance": "schema",
    "Snapshot": "reader",
    "StoreClips": "clips",
    "StoreWriter": "writer",
    "StoredVideo": "reader",
    "VideoRecord": "schema",
    "VideoWriter": "writer",
}

__all__ = [
    "Failure",
    "FeatureStore",
    "Provenance",
    "Snapshot",
    "StoreClips",
    "StoreWriter",
    "StoredVideo",
    "VideoRecord",
    "VideoWriter",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"flamvid.store.{_HOMES[name]}"), name)
