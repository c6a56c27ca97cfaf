"""pytorchvideo for those who train with it: its clip samplers, and its transforms.

The only module that imports pytorchvideo, and only when something of it is asked for.
"""

from __future__ import annotations

import copy
import importlib
import math
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from fractions import Fraction
from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.types import Frames, Segment

__all__ = ["SAMPLERS", "as_clip", "clip_segments", "make_sampler", "transforms"]

SAMPLERS = ("random", "uniform", "constant_clips_per_video", "random_multi")

_MOST_CLIPS = 1_000_000
_ALIAS = "torchvision.transforms.functional_tensor"  # private in the torchvision of today

_lock = threading.Lock()


def make_sampler(kind: str, *settings: float) -> Any:
    """A clip sampler of pytorchvideo: `make_sampler("uniform", clip seconds, stride seconds)`.

    kind: one of `SAMPLERS`; settings: what its constructor takes, in its order.
    """
    if kind not in SAMPLERS:
        near = get_close_matches(kind, SAMPLERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"no clip sampler is called {kind!r}; there are {', '.join(SAMPLERS)}{hint}"
        )
    sound = (isinstance(s, bool) or (math.isfinite(s) and s > 0) for s in settings)
    if not settings or not all(sound):
        raise InputError(f"{kind} has settings {settings}; seconds and counts must be above 0")
    theirs: Any = importlib.import_module("pytorchvideo.data.clip_sampling")
    try:
        return theirs.make_clip_sampler(kind, *(_exact(s) for s in settings))
    except (AssertionError, TypeError) as error:
        raise InputError(f"{kind} can't have settings {settings}: {error}") from error


def clip_segments(
    sampler: Any, duration: float, *, seed: int = 0, skip: int = 0, passes: int = 1
) -> Iterator[Segment]:
    """The clips that a sampler takes from a video of `duration` seconds, cut off at its end.

    The same arguments give the same clips. skip: how many to leave out, to go on where an earlier
    run stopped. passes: how often to go through the video; a random sampler takes one clip a pass.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise InputError(f"the duration is {duration} s; must be above 0")
    if skip < 0 or passes < 1:
        raise InputError(f"skip is {skip}, passes {passes}; must be at least 0 and 1")
    return islice(_clips(copy.deepcopy(sampler), duration, seed, passes), skip, None)


def _clips(sampler: Any, duration: float, seed: int, passes: int) -> Iterator[Segment]:
    numbers = random.Random(seed)
    length = _exact(duration)
    sampler.reset()
    for _ in range(passes):
        end: Any = Fraction(0)  # not None, at which the uniform sampler fails
        for _ in range(_MOST_CLIPS):
            with _drawing_from(numbers):
                clip = sampler(end, length, {})
            several = isinstance(clip.clip_start_sec, list)
            starts = clip.clip_start_sec if several else [clip.clip_start_sec]
            ends = clip.clip_end_sec if several else [clip.clip_end_sec]
            for start, stop in zip(starts, ends, strict=True):
                yield Segment(float(start), min(float(stop), duration))
            end = ends[-1]
            if all(clip.is_last_clip) if several else clip.is_last_clip:
                break
        else:
            raise InputError(f"the sampler takes over {_MOST_CLIPS} clips; give it a longer stride")


def transforms() -> ModuleType:
    """`pytorchvideo.transforms`, whose import needs a module that torchvision has renamed.

    The old name exists while it is imported and is gone afterwards. Clips for it: `as_clip`.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles with torch.jit, which is deprecated
        before = sys.modules.get(_ALIAS)
        if before is None:
            sys.modules[_ALIAS] = importlib.import_module(
                "torchvision.transforms._functional_tensor"
            )
        try:
            return importlib.import_module("pytorchvideo.transforms")
        finally:
            if before is None:
                del sys.modules[_ALIAS]


def as_clip(frames: Frames) -> Tensor:
    """Frames as pytorchvideo has them: float32 [3,T,H,W], in 0 to 255."""
    return frames.pixels.permute(1, 0, 2, 3).to(torch.float32)


@contextmanager
def _drawing_from(numbers: random.Random) -> Iterator[None]:
    """Their samplers draw from the global `random`; within the block they draw from `numbers`."""
    theirs: Any = importlib.import_module("pytorchvideo.data.clip_sampling")
    with _lock:
        before, theirs.random = theirs.random, numbers
        try:
            yield
        finally:
            theirs.random = before


def _exact(number: float) -> Any:
    """Seconds as they were meant: ten times 0.1 is 1, or the last clip would be lost."""
    return number if isinstance(number, int) else Fraction(number).limit_denominator(1_000_000)
