"""Before a run: its parts and how long it would take, by some updates that are not kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flamvid.data.features import FeatureSet, features_of, missing_features
from flamvid.data.shards import samples_in
from flamvid.train.ready import Part

if TYPE_CHECKING:
    from flamvid.weights.load import LoadedModel

__all__ = ["SomeFeatures", "Trial"]

_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run would be.

    updates: of all its stages, and the seconds that they would take. encoding: the seconds until
    frozen features of all shards were there, for a run that computes them first.
    """

    parts: tuple[Part, ...]
    updates: int
    seconds: float
    encoding: float = 0.0


class SomeFeatures:
    """Frozen features of a few samples of each list of shards, computed into `scratch`.

    seconds: what those of all would take that are not in `cache`.
    """

    def __init__(self, cache: Path, scratch: Path, log: Callable[[str], None]) -> None:
        self.cache, self.scratch, self.log, self.seconds = cache, scratch, log, 0.0

    def __call__(self, shards: list[Path], model: LoadedModel) -> FeatureSet:
        """Features of a shard that is missing, or all of the first one if none is."""
        missing = missing_features(shards, self.cache, model)
        if not missing:
            return features_of(shards[:1], self.cache, model, _silent)
        self.log(f"features of {_SAMPLES} samples of {missing[0]}")
        begun = time.perf_counter()
        found = features_of(missing[:1], self.scratch, model, _silent, _SAMPLES)
        took = time.perf_counter() - begun
        self.seconds += took / len(found) * sum(map(samples_in, missing))
        return found


def _silent(text: str) -> None:
    """What a trial does is no news."""
