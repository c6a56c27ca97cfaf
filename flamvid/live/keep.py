"""A stream into a store, part by part: what is over can be searched while the rest is watched."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from flamvid.errors import StoreError
from flamvid.live.cue import Cue, Kind
from flamvid.models.contrastive import Embedder
from flamvid.store import Provenance, StoreWriter, VideoRecord
from flamvid.store.writer import VideoWriter
from flamvid.types import Caption

__all__ = ["Keeper"]

_log = logging.getLogger("flamvid.live")


class Keeper:
    """Appends frames and captions; each part of `seconds` is a video of its own in the store.

    Its name is the source's with the part's time, `rtsp://...#t=60,120`, and pts go on from part to
    part. A part is visible when it is over; `close` ends the last one. One that can't be written,
    as on a full disk, is lost, and the next is tried.
    """

    def __init__(
        self,
        path: Path,
        provenance: Provenance,
        source: str,
        fps: float,
        *,
        embedder: Embedder | None = None,
        seconds: float = 60.0,
    ) -> None:
        self.lost = 0  # captions
        self._writer = StoreWriter(path, provenance)
        self._source, self._fps, self._embedder, self._seconds = source, fps, embedder, seconds
        self._part: VideoWriter | None = None
        self._captions: list[Caption] = []
        self._began = self._end = 0.0
        self._again = -math.inf  # when to try once more, where a part was lost
        self._warned = False

    def add(self, pts: float, features_NF: Tensor) -> None:
        """Append a frame."""
        if self._part is not None and pts >= self._began + self._seconds:
            self._finish()
        if self._part is not None or pts >= self._again:
            with self._losing():
                self._add(pts, features_NF)

    def _add(self, pts: float, features_NF: Tensor) -> None:
        if self._part is None:
            self._began = pts - 0.5 / self._fps
            self._part = VideoWriter(self._writer, self._record())
        features_1NF = features_NF[None]
        vectors = None if self._embedder is None else self._embedder.frames(features_1NF).cpu()
        self._part.add([pts], features_1NF.float().cpu(), vectors)
        self._end = pts + 0.5 / self._fps

    def put(self, cue: Cue) -> None:
        """Append a caption to the part in which it was made."""
        if cue.kind is Kind.CAPTION and self._part is None:
            self.lost += 1
        elif cue.kind is Kind.CAPTION:
            said = {
                k: getattr(cue, k) for k in ("source", "start", "end", "text", "logprob", "model")
            }
            self._captions.append(Caption(**said))

    def close(self) -> None:
        """Make the last part visible, and let others write."""
        self._finish()
        with self._losing():
            self._writer.close()

    def _record(self) -> VideoRecord:
        now = time.time()
        unique = f"{self._source} {self._began} {now}"
        return VideoRecord(
            path=f"{self._source}#t={self._began:g},{self._began + self._seconds:g}",
            content_hash=hashlib.sha256(unique.encode()).hexdigest(),
            mtime=now,
            fps=self._fps,
        )

    def _finish(self) -> None:
        if self._part is not None:
            with self._losing():
                self._part.captions(self._captions)
                self._part.finish(self._end - self._began)
                self._part, self._captions = None, []

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Give up the part that can't be written."""
        try:
            yield
        except StoreError as error:
            if not self._warned:
                _log.warning("%s", error)
            self._warned = True
            self.lost += len(self._captions)
            self._part, self._captions = None, []
            self._again = self._began + self._seconds
