"""A store as a torch Dataset: clips by windows of time.

Legend: B clips, T frames, N patches, F feature width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flamvid.errors import InputError
from flamvid.store.reader import FeatureStore
from flamvid.store.schema import VideoRecord

__all__ = ["StoreClips", "StoredClip"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredClip:
    """Frames with start <= pts < end: `features` [T,N,F] and `pts` float64 [T], in seconds."""

    video: VideoRecord
    start: float
    end: float
    features: Tensor
    pts: Tensor


class StoreClips(Dataset[StoredClip]):
    """Windows of `seconds`, one every `stride` (as long as a window), over the videos of a store.

    The videos are those that are there when the dataset is made; a window without a frame is none.
    Works with any number of DataLoader workers, forked or spawned. keep: which videos to take.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        seconds: float,
        *,
        stride: float | None = None,
        keep: Callable[[VideoRecord], bool] | None = None,
    ) -> None:
        stride = seconds if stride is None else stride
        if not 0 < seconds < np.inf or not 0 < stride < np.inf:
            raise InputError(f"seconds are {seconds:g}, stride {stride:g}; both must be above 0")
        self.store, self.seconds, self.stride = FeatureStore(store), seconds, stride
        self.clips: list[tuple[str, int]] = []
        snapshot = self.store.snapshot()
        for video_id in snapshot:
            video = snapshot[video_id]
            if keep is None or keep(video.record):
                pts = video.pts()
                for number in range(int(pts[-1] / stride) + 1):
                    first, last = video.span(number * stride, number * stride + seconds)
                    if first < last:
                        self.clips.append((video_id, number))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> StoredClip:
        video_id, number = self.clips[index]
        start = number * self.stride
        end = start + self.seconds
        video = self.store[video_id]
        # Copies: a tensor can be written to, and the store's bytes can't.
        features = np.array(video.features(start, end))
        pts = np.array(video.pts(start, end))
        return StoredClip(
            video.record, start, end, torch.from_numpy(features), torch.from_numpy(pts)
        )

    @staticmethod
    def collate(clips: Sequence[StoredClip]) -> tuple[Tensor, Tensor]:
        """Features [B,T,N,F], short clips padded with 0, and frame counts [B]."""
        counts = torch.tensor([len(clip.features) for clip in clips])
        first = clips[0].features
        out = first.new_zeros(len(clips), int(counts.max()), *first.shape[1:])
        for row, clip in zip(out, clips, strict=True):
            row[: len(clip.features)] = clip.features
        return out, counts
