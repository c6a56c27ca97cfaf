"""Samples of a feature store: its captions, each with the features of the time that it is about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flamvid.data.media import part_of
from flamvid.data.samples import Document, Look, Media
from flamvid.errors import SourceError
from flamvid.store import FeatureStore, StoredVideo
from flamvid.video.sample import Fps

__all__ = ["Span", "StoreShard"]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a stored video, in seconds."""

    video: StoredVideo
    start: float
    end: float

    def __call__(self, look: Look) -> Media:
        """At most `look.frames` of the stored frames, at `look.fps`, from a random place."""
        pts = self.video.pts(self.start, self.end)
        if len(pts) == 0:
            raise SourceError(
                f"{self.video.id} has no frames from {self.start:g} to {self.end:g} s"
            )
        # A stored frame is shown until the next one, and the last as long as the one before.
        last = max(self.end, float(pts[-1]) + 1e-6)
        durations = np.diff(pts, append=last)
        first, last = part_of(float(pts[0]), last, look)
        places = Fps(look.fps).indices(pts, durations, first, last)[: look.frames]
        places = np.unique(places)
        features = np.array(self.video.features(self.start, self.end)[places])
        return Media(pts[places], features=torch.from_numpy(features).float())


class StoreShard:
    """What was said of one part of a stored video is a sample; one without captions is none."""

    def __init__(self, path: str) -> None:
        self._store = FeatureStore(path)
        snapshot = self._store.snapshot()
        said: dict[tuple[str, float, float], list[str]] = {}
        for video_id in snapshot:
            for caption in snapshot[video_id].record.captions:
                said.setdefault((video_id, caption.start, caption.end), []).append(caption.text)
        self._said = list(said.items())

    def __len__(self) -> int:
        return len(self._said)

    def name(self, at: int) -> str:
        """The video's id, and the part of it."""
        video_id, start, end = self._said[at][0]
        return f"{video_id}@{start:g}-{end:g}"

    def document(self, at: int) -> Document:
        """A part of a video, with its captions."""
        (video_id, start, end), texts = self._said[at]
        span = Span(self._store[video_id], start, end)
        return Document(self.name(at), (span,), tuple(texts))
