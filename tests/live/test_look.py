"""What a video encoder is shown: clips at its own rate, of files and of streams."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flamvid.errors import InputError
from flamvid.live.look import Looker, View
from flamvid.models.encoder import Clip
from flamvid.types import Frames, Segment
from flamvid.video.sample import Clips, frame_at, windows
from flamvid.weights.load import LoadedModel

CLIP = Clip(frames=4, fps=2.0, steps=2)


class Stream:
    """Pixels tell when a frame is shown, in hundredths of a second, and end at `length`."""

    name = "stream"

    def __init__(self, length: float) -> None:
        self.length = length

    def frames(self, fps: float) -> Iterator[Frames]:
        for tick in range(int(self.length * fps + 1e-9)):
            time = (tick + 0.5) / fps
            pixels = torch.full((1, 3, 2, 2), 100 * time)
            yield Frames(pixels, np.array([time]), np.array([1 / fps]))


def looker() -> tuple[Looker, list[list[float]]]:
    """One whose features [steps,1,1] are the first and the last time of a clip; and its clips."""
    clips: list[list[float]] = []

    def encode(pictures_X3HW: Tensor) -> Tensor:
        times = (pictures_X3HW[:, 0, 0, 0] / 100).tolist()
        clips.append(times)
        return torch.tensor([times[0], times[-1]]).view(2, 1, 1)

    model: Any = types.SimpleNamespace(
        transform=lambda pixels: pixels,
        flamingo=types.SimpleNamespace(encode=encode, vision=types.SimpleNamespace(clip=CLIP)),
        config=types.SimpleNamespace(
            frames=0,
            resampler=types.SimpleNamespace(frames=8),
            vision=types.SimpleNamespace(encoder="pytorchvideo:x", size=2, resize="crop"),
        ),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return Looker(model), clips


def watch(length: float, **asked: Any) -> tuple[list[tuple[float, float]], list[list[float]]]:
    """The windows of a stream, and the times of each clip that was encoded."""
    look, clips = looker()
    view = View(**asked)
    stream: Any = Stream(length)
    part = Segment(view.start or 0.0, view.end or float("inf"))
    parts = [(p.start, p.end) for p, _ in look._watch(stream, look._sampling(view), part, view)]
    return parts, clips


def test_windows_of_a_stream_hold_whole_clips() -> None:
    parts, clips = watch(8.0, every=4.0)
    assert parts == [(0, 4), (4, 8)]
    # A clip lasts two seconds, and is taken from the middle of its window.
    assert clips == [[1.25, 1.75, 2.25, 2.75], [5.25, 5.75, 6.25, 6.75]]
    parts, clips = watch(8.0, every=4.0, frames=8)
    assert parts == [(0, 4), (4, 8)]
    assert [clip[0] for clip in clips] == [0.25, 2.25, 4.25, 6.25]


def test_windows_that_overlap_end_with_the_stream_as_those_of_a_file_do() -> None:
    for length in (6.0, 7.0, 8.0):
        parts, _ = watch(length, every=2.0, window=4.0)
        assert parts == [(part.start, part.end) for part in windows(length, 4.0, 2.0)]


def test_a_window_shorter_than_a_clip_squeezes_it() -> None:
    parts, clips = watch(3.0, every=1.0)
    assert parts == [(0, 1), (1, 2), (2, 3)]
    assert clips[1] == [1.125, 1.375, 1.625, 1.875]


def test_the_end_of_a_stream_is_a_clip_cut_short() -> None:
    parts, clips = watch(5.4, every=2.0)
    assert parts == [(0, 2), (2, 4), (4, 5)]  # the last tick that was whole
    assert clips[-1] == [4.25, 4.75]
    [part], clips = watch(0.6)
    assert part == (0.0, 0.5)
    assert clips == [[0.25]]


def test_a_whole_stream_is_kept_to_the_clips_asked_for() -> None:
    [part], clips = watch(40.0, frames=12)
    assert part == (0, 40)
    assert all(len(clip) == 4 for clip in clips)
    assert len(clips) < 20  # what would not be kept is not encoded


@given(
    length=st.floats(1, 60),
    every=st.floats(0.5, 20),
    frames=st.integers(1, 40),
    overlap=st.floats(0.5, 2),
)
def test_no_window_goes_without_a_clip(
    length: float, every: float, frames: int, overlap: float
) -> None:
    parts, clips = watch(length, every=every, window=every * overlap, frames=frames)
    assert all(1 <= len(clip) <= 4 for clip in clips)
    starts = [start for start, _ in parts]
    # All but the last, which the stream may leave too short for a clip, are there.
    whole = [
        i * every
        for i in range(int(length / every) + 1)
        if (i + 1) * every * max(1, overlap) < length - 1
    ]
    missing = [start for start in whole if not any(abs(start - s) < 1e-6 for s in starts)]
    assert not missing


@given(
    gaps=st.lists(st.floats(0.02, 1.5), min_size=1, max_size=60),
    n=st.integers(1, 5),
    frames=st.integers(1, 16),
    fps=st.floats(1, 15),
)
def test_clips_of_a_file_keep_their_rate(
    gaps: list[float], n: int, frames: int, fps: float
) -> None:
    pts = np.cumsum([0.0, *gaps])[:-1]
    durations = np.array(gaps)
    length = float(pts[-1] + durations[-1])
    at = Clips(n, frames, fps).indices(pts, durations)
    assert at.shape == (n * frames,)
    for i, clip in enumerate(at.reshape(n, frames)):
        assert (np.diff(clip) >= 0).all()
        step = min(1 / fps, length / frames)
        middle = (i + 0.5) / n * length
        centre = np.clip(middle, frames * step / 2, length - frames * step / 2)
        times = centre + (np.arange(frames) - (frames - 1) / 2) * step
        near = [frame_at(pts, times - 1e-9), frame_at(pts, times + 1e-9)]
        assert ((clip == near[0]) | (clip == near[1])).all()


def test_a_part_of_a_file_holds_its_clips() -> None:
    pts, durations = np.arange(100) / 10, np.full(100, 0.1)
    assert Clips(1, 4, 2.0).indices(pts, durations, 4.0, 8.0).tolist() == [52, 57, 62, 67]
    assert Clips(1, 4, 2.0).indices(pts, durations, 4.0, 5.0).tolist() == [41, 43, 46, 48]
    assert Clips(1, 4, 2.0).indices(np.zeros(1), np.zeros(1)).tolist() == [0, 0, 0, 0]


def test_frames_are_filled_up_to_whole_clips_and_fps_is_refused() -> None:
    look, _ = looker()
    assert [look._sampling(View(frames=n)) for n in (1, 4, 5)] == [
        Clips(1, 4, 2.0),
        Clips(1, 4, 2.0),
        Clips(2, 4, 2.0),
    ]
    assert look._sampling(View()) == Clips(1, 4, 2.0)
    with pytest.raises(InputError, match="clips of 4 frames, 2 a second; say how many frames"):
        look._sampling(View(fps=3))
    with pytest.raises(InputError, match="number of frames is 0"):
        look._sampling(View(frames=0))


def test_an_encoder_that_learns_leaves_no_graph_behind(model: LoadedModel) -> None:
    """Of each frame that a stream's memory keeps, it would keep a graph: a gigabyte an hour."""
    thawed = copy.deepcopy(model.flamingo)
    thawed.vision.requires_grad_(True)
    frames = Frames(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), np.arange(2.0), np.ones(2))
    features = Looker(replace(model, flamingo=thawed)).encode(frames)
    assert not features.requires_grad
    torch.testing.assert_close(features, Looker(model).encode(frames))
