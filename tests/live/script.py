"""Streams made of events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flamvid.types import Frames
from flamvid.video.events import Event, Frame

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


@dataclass
class Counted:
    dropped: int = 0


class Script:
    """A stream that gives these events, then ends."""

    name = "script"

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = list(events)
        self.stats = Counted()

    def get(self, timeout: float | None = None) -> Event | None:
        return self.events.pop(0) if self.events else None


def frame(tick: int, colour: str, fps: float = 2.0, age: float = 0.0) -> Frame:
    """Frame number `tick` of a stream, all of one colour, that came `age` seconds ago."""
    pixels = torch.tensor(COLOURS[colour], dtype=torch.uint8)[None, :, None, None]
    at = (tick + 0.5) / fps
    frames = Frames(pixels.expand(1, 3, 64, 64).clone(), np.array([at]), np.array([1 / fps]))
    return Frame(frames, at, time.time() - age)


def walls(*colours: str, each: int = 4) -> list[Event]:
    """So many frames of each colour, one after the other."""
    return [frame(i * each + j, colour) for i, colour in enumerate(colours) for j in range(each)]
