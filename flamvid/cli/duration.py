"""A duration as a person says it."""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """The two largest units: 1 d 3 h, 5 min 2 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    said = [f"{n} {unit}" for n, unit in units if n][:2]
    return " ".join(said) or "0 s"
