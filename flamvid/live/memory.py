"""All that is remembered of a stream: its last frames as they were, and a long memory behind them.

What it may take is known before the first frame, and held.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.live.moment import Moment, seen
from flamvid.live.policies import Drop, Policy, tidy_of
from flamvid.models.resampler_keys import KeyReader

__all__ = ["Memory", "MemoryConfig", "Sizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """recent: frames kept as they were. long: places of the long memory behind them."""

    policy: Policy = Policy.WINDOW
    recent: int = 8
    long: int = 8

    def __post_init__(self) -> None:
        if self.recent < 1:
            raise InputError(f"the memory has {self.recent} recent frames; must be at least 1")
        if self.policy is not Policy.WINDOW and self.long < 1:
            raise InputError(
                f"the long memory has {self.long} places; must be at least 1, or the policy window"
            )


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one frame takes: `patches` by `width` features of `dtype`, and `keys` bytes beside."""

    patches: int
    width: int
    dtype: torch.dtype
    keys: int = 0

    @property
    def moment(self) -> int:
        """Bytes of a frame's features, their mean, and keys."""
        return (self.patches + 1) * self.width * self.dtype.itemsize + self.keys

    def most(self, config: MemoryConfig) -> int:
        """Bytes that a memory takes at most, at any time, also while it is tidied."""
        tidy = tidy_of(config.policy, config.long)
        most = (config.recent + 1) * self.moment  # one comes before one goes
        if isinstance(tidy, Drop):
            # Frames share the patches of fewer; each has a mean. And what each place last showed.
            features = self.patches * self.width * self.dtype.itemsize
            means = (tidy.places + 1) * self.width * self.dtype.itemsize
            return most + tidy.whole * (features + self.keys) + means + features
        if config.policy is Policy.WINDOW:
            return most
        # Moments are joined before those that they were made of are let go.
        return most + (tidy.places + 2 * tidy.extra + 1) * self.moment

    def within(self, config: MemoryConfig, cap: int) -> MemoryConfig:
        """The same policy with as many places as `cap` bytes hold; first the long memory shrinks.

        InputError where not even one place of each fits.
        """
        if config.policy is not Policy.WINDOW:
            long = self._fit(cap, config.long, lambda n: replace(config, long=n))
            config = replace(config, long=long)
        recent = self._fit(cap, config.recent, lambda n: replace(config, recent=n))
        config = replace(config, recent=recent)
        if self.most(config) > cap:
            raise InputError(
                f"the memory may take {cap} bytes, but a frame of this model takes "
                f"{self.moment} and the least memory {self.most(config)}; allow more"
            )
        return config

    def _fit(self, cap: int, wanted: int, of: Callable[[int], MemoryConfig]) -> int:
        """The largest number up to `wanted` of which a memory fits; 1 where none does."""
        return max(1, bisect_right(range(1, wanted + 1), cap, key=lambda n: self.most(of(n))))


class Memory:
    """Moments of a stream in their order: of the long memory, then the recent frames.

    reader: works out the keys of what stays, so that each frame is projected once; None keeps
    features alone. `nbytes` never passes `Sizes.most`.
    """

    def __init__(self, config: MemoryConfig, reader: KeyReader | None = None) -> None:
        self.config, self._reader = config, reader
        self.tidy = tidy_of(config.policy, config.long)
        self.long: list[Moment] = []
        self.recent: list[Moment] = []

    def add(self, features_NF: Tensor, time: float, start: float, end: float) -> Moment:
        """Remember a frame that was shown from `start` to `end` and looked at in between."""
        self.recent.append(seen(features_NF, time, start, end))
        if len(self.recent) > self.config.recent:
            self.long = self.tidy([*self.long, self.recent.pop(0)])
        return self.recent[-1]

    def turn(self) -> None:
        """Another scene has begun with the newest frame: what was recent before it no longer is."""
        while len(self.recent) > 1:
            self.long = self.tidy([*self.long, self.recent.pop(0)])

    def moments(self) -> list[Moment]:
        """All that is remembered, with keys where there is a reader."""
        if self._reader is not None:
            for part in (self.long, self.recent):
                for at, moment in enumerate(part):
                    if moment.keys is None:
                        part[at] = replace(moment, keys=self._reader.keys(moment.features))
        return [*self.long, *self.recent]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are held."""
        shown = self.tidy.shown_NF if isinstance(self.tidy, Drop) else None
        held = sum(m.nbytes for m in (*self.long, *self.recent))
        return held + (0 if shown is None else shown.nbytes)

    def __len__(self) -> int:
        return len(self.long) + len(self.recent)
