"""Every error that flamvid raises for bad input.

FlamvidError
├── InputError      an argument or option breaks a rule (also a ValueError)
├── SourceError     a media source can't be read: missing, empty, not a video
│   └── DecodeError a source opened but its frames can't be decoded
│       └── DecoderLost the process that decodes hung, crashed or ran out of memory
├── WeightsError    weights are missing, damaged, or not what was pinned
│   └── OfflineError weights are missing and can't be fetched
├── StoreError      a feature store can't be opened, written, or mixed as asked
│   └── DamagedStore bytes of a store are not what was written
└── ConfigError     a preset or recipe breaks a rule

A message is one line: what was wrong, the value, the rule, the way out.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DamagedStore",
    "DecodeError",
    "DecoderLost",
    "FlamvidError",
    "InputError",
    "OfflineError",
    "SourceError",
    "StoreError",
    "WeightsError",
]


class FlamvidError(Exception):
    """Base of all errors that a caller can meet through bad input."""


class InputError(FlamvidError, ValueError):
    """An argument or option breaks a rule."""


class SourceError(FlamvidError):
    """A media source can't be read."""


class DecodeError(SourceError):
    """A source opened but its frames can't be decoded."""


class DecoderLost(DecodeError):  # noqa: N818
    """The process that decodes hung, crashed or ran out of memory."""


class WeightsError(FlamvidError):
    """Weights are missing, damaged, or not what was pinned."""


class OfflineError(WeightsError):
    """Weights are missing and can't be fetched."""


class StoreError(FlamvidError):
    """A feature store can't be opened, written, or mixed as asked."""


class DamagedStore(StoreError):  # noqa: N818
    """Bytes of a store are not what was written."""


class ConfigError(FlamvidError):
    """A preset or recipe breaks a rule."""
