"""A file with random access, decoded in a child of its own."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid.errors import DecodeError, DecoderLost, InputError, SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.ffmpeg_file import FfmpegFile, time_allowed
from flamvid.video.isolate import Child, borrow, give_back
from flamvid.video.policy import check_size

__all__ = ["IsolatedFile", "Refused"]


class IsolatedFile:
    """Frames by index. `decoder` and `reason` say what reads them, and why that one.

    Usable by threads, one at a time, and after a fork, where it is opened anew; it pickles as what
    it was opened with.
    """

    def __init__(self, path: Path, size: tuple[int, int] | None, timeout: float | None) -> None:
        """Index the file; a `Refused` says why no random access to it would be right."""
        self.path, self.size, self.timeout = path, size, timeout
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._open()

    def _open(self) -> None:
        decoder = os.environ.get("FLAMVID_DECODER") or None
        if decoder not in (None, "av", "decord", "torchcodec"):
            raise InputError(
                f"FLAMVID_DECODER is {decoder!r}; must be av, decord, torchcodec, or unset"
            )
        child = borrow()
        try:
            head, arrays = child.ask(
                "open",
                self.timeout or time_allowed(self.path),
                path=str(self.path),
                size=self.size,
                decoder=decoder,
            )
        except BaseException:
            give_back(child)
            raise
        self._stored = VideoInfo(**head["info"])
        self.decoder: str = head["reader"] or "ffmpeg"
        self.reason: str = head["reason"]
        if head["reader"] is None:
            give_back(child)
            raise Refused(self._stored, self.reason)
        self.pts: NDArray[np.float64] = arrays[0]
        self.durations: NDArray[np.float64] = arrays[1]
        self._child = child
        # Not a method: the finalizer must not keep the file alive.
        self._release = weakref.finalize(self, give_back, child)

    @cached_property
    def info(self) -> VideoInfo:
        """Facts of the file; asked for when wanted, for they take a frame's decoding."""
        head, _ = self._ask("describe", path=str(self.path))
        return replace(VideoInfo(**head["info"]), frames=len(self.pts))

    @cached_property
    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames, rising."""
        places: NDArray[np.int64] = self._ask("keyframes")[1][0]
        return places

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places, uint8, in the order asked."""
        at = np.asarray(indices, dtype=np.int64)
        try:
            pixels = self._receive(at)
        except DecoderLost:
            raise
        except DecodeError as error:
            return self._read_forward(indices, error)
        return Frames(pixels, self.pts[at], self.durations[at])

    def _receive(self, at: NDArray[np.int64]) -> Tensor:
        """Pixels of the frames at these places, copied out of what the child may write to."""
        wanted: dict[int, list[int]] = {}
        for row, place in enumerate(at.tolist()):
            wanted.setdefault(place, []).append(row)
        missing = set(wanted)
        pixels_T3HW: Tensor | None = None

        def keep(place: int, frame_HW3: NDArray[Any]) -> None:
            nonlocal pixels_T3HW
            if frame_HW3.dtype != np.uint8 or frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3:
                raise ValueError("no frame")
            height, width, _ = frame_HW3.shape
            if pixels_T3HW is None:
                if self.size is None:
                    check_size(str(self.path), width, height)
                pixels_T3HW = torch.empty((len(at), 3, height, width), dtype=torch.uint8)
            if self.size not in (None, (height, width)) or pixels_T3HW.shape[2:] != (height, width):
                raise ValueError("a frame of another size")
            if place not in missing:
                raise ValueError("a frame that was not asked for")
            missing.remove(place)
            for row in wanted[place]:
                pixels_T3HW.numpy()[row] = frame_HW3.transpose(2, 0, 1)

        self._ask("read", keep, places=sorted(wanted))
        if pixels_T3HW is None or missing:
            raise DecodeError("the decoder left frames out")
        return pixels_T3HW

    def _read_forward(self, indices: Sequence[int], error: DecodeError) -> Frames:
        """What random access gives up on, ffmpeg may read; it counts when all frames are there."""
        again = FfmpegFile.open(self.path, self._stored, self.size, self.timeout)
        if len(again.pts) != len(self.pts):
            raise DecodeError(
                f"{self.path} can't be decoded: of {len(self.pts)} frames {len(again.pts)} "
                "are readable; the file is damaged or truncated, copy it again"
            ) from error
        return again.read(indices)

    def _ask(
        self,
        verb: str,
        each: Callable[[int, NDArray[Any]], None] | None = None,
        **request: Any,
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        with self._lock:
            if self._child is None:
                raise SourceError(f"{self.path} was closed; open it again")
            if self._child.owner != os.getpid() or not self._child.alive:
                self._open()
            duration = float(self.pts[-1] + self.durations[-1])
            timeout = self.timeout or time_allowed(self.path, duration)
            try:
                return self._child.ask(verb, timeout, each, **request)
            except DecoderLost as error:
                raise DecoderLost(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Let the child go."""
        if self._child is not None:
            self._child = None
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., IsolatedFile], tuple[Any, ...]]:
        return IsolatedFile, (self.path, self.size, self.timeout)

    def __repr__(self) -> str:
        return f"IsolatedFile({str(self.path)!r}, {len(self.pts)} frames, {self.decoder})"


class Refused(Exception):  # noqa: N818 - not an error: the file is read forward instead
    """Random access to this file would be wrong; `info` is what its container says."""

    def __init__(self, info: VideoInfo, reason: str) -> None:
        super().__init__(reason)
        self.info, self.reason = info, reason
