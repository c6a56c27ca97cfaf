from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamvid.errors import InputError
from flamvid.video.sample import (
    Fps,
    Keyframes,
    Stride,
    Times,
    Uniform,
    frame_at,
    thinned,
    windows,
)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """pts and durations of a video of variable frame rate."""
    gaps = draw(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40))
    durations = np.array(gaps)
    return np.concatenate([[0.0], np.cumsum(durations)[:-1]]), durations


@given(timelines(), st.floats(-1, 100))
def test_frame_at_is_the_frame_shown(timeline: tuple[np.ndarray, np.ndarray], t: float) -> None:
    pts, _ = timeline
    at = int(frame_at(pts, np.array([t]))[0])
    assert pts[at] <= t or at == 0
    assert at == len(pts) - 1 or pts[at + 1] > t


def test_variable_frame_rate_is_sampled_by_time_not_by_index() -> None:
    pts = np.array([0.0, 0.1, 0.2, 0.3, 5.0])  # most of the video shows frame 3
    durations = np.array([0.1, 0.1, 0.1, 4.7, 1.0])
    assert frame_at(pts, np.array([0.25, 3.0, 5.5])).tolist() == [2, 3, 4]
    assert Uniform(4).indices(pts, durations).tolist() == [3, 4]


def test_uniform_takes_the_middle_of_equal_parts() -> None:
    pts, durations = np.arange(100) / 25, np.full(100, 0.04)
    assert Uniform(4).indices(pts, durations).tolist() == [12, 37, 62, 87]
    assert Uniform(2).indices(pts, durations, start=2.0, end=4.0).tolist() == [62, 87]
    assert Uniform(1).indices(pts, durations).tolist() == [50]


@given(timelines(), st.integers(1, 30))
def test_uniform_gives_rising_frames_without_repeats(
    timeline: tuple[np.ndarray, np.ndarray], n: int
) -> None:
    at = Uniform(n).indices(*timeline)
    assert 1 <= len(at) <= n
    assert (np.diff(at) > 0).all()
    assert at[0] >= 0
    assert at[-1] < len(timeline[0])


def test_fps_repeats_a_frame_that_is_shown_for_long() -> None:
    pts, durations = np.array([0.0, 3.0]), np.array([3.0, 1.0])
    assert Fps(1).indices(pts, durations).tolist() == [0, 0, 0, 1]
    assert Fps(0.1).indices(pts, durations).tolist() == [1]  # one frame, however short the video


@given(timelines(), st.floats(0.1, 20))
def test_fps_gives_as_many_frames_as_the_time_has(
    timeline: tuple[np.ndarray, np.ndarray], rate: float
) -> None:
    pts, durations = timeline
    length = pts[-1] + durations[-1]
    at = Fps(rate).indices(pts, durations)
    assert len(at) == max(1, int(length * rate + 1e-6))
    assert (np.diff(at) >= 0).all()


@given(timelines(), st.integers(1, 9), st.integers(1, 9))
def test_stride_keeps_its_distance_and_stays_inside(
    timeline: tuple[np.ndarray, np.ndarray], window: int, stride: int
) -> None:
    at = Stride(window, stride).indices(*timeline)
    n = len(timeline[0])
    assert len(at) == min(window, (n - 1) // stride + 1)
    assert (np.diff(at) == stride).all()
    assert at[0] >= 0
    assert at[-1] < n


@given(st.floats(0.1, 500), st.floats(0.05, 60), st.floats(0.05, 60), st.floats(0, 0.9))
def test_windows_cover_the_span(length: float, size: float, every: float, lead: float) -> None:
    start = lead * length
    parts = windows(length, size, every, start)
    assert parts[0].start == start
    assert all(p.start < p.end <= length + 1e-6 for p in parts)
    assert all(b.start - a.start == pytest.approx(every) for a, b in itertools.pairwise(parts))
    if every <= size:
        assert parts[-1].end == pytest.approx(length)
        assert all(b.start <= a.end + 1e-6 for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [(4.5, None, "start is 4.5 s"), (-1.0, None, "start is -1 s"), (2.0, 1.0, "end is 1 s")],
)
def test_a_span_outside_the_video_is_refused(start: float, end: float | None, message: str) -> None:
    pts, durations = np.arange(100) / 25, np.full(100, 0.04)
    with pytest.raises(InputError, match=message):
        Uniform(4).indices(pts, durations, start, end)


@pytest.mark.parametrize("make", [lambda: Uniform(0), lambda: Fps(0.0), lambda: Fps(float("nan"))])
def test_senseless_settings_are_refused(make) -> None:
    with pytest.raises(InputError, match="must be"):
        make()


def test_a_still_has_one_frame_whatever_is_asked() -> None:
    pts, durations = np.zeros(1), np.zeros(1)
    for sampling in (Uniform(8), Fps(2.0), Stride(8), Times((0.0,)), Keyframes((0,), 8)):
        assert sampling.indices(pts, durations).tolist() == [0]


def test_times_are_given_in_the_order_asked() -> None:
    pts, durations = np.array([0.0, 0.1, 0.2, 5.0]), np.array([0.1, 0.1, 4.8, 1.0])
    assert Times((5.5, 0.0, 3.0, 0.15, 0.0)).indices(pts, durations).tolist() == [3, 0, 2, 1, 0]


@given(timelines(), st.lists(st.floats(0, 0.999), min_size=1, max_size=20))
def test_times_give_the_frame_shown(
    timeline: tuple[np.ndarray, np.ndarray], parts: list[float]
) -> None:
    pts, durations = timeline
    seconds = [p * float(pts[-1] + durations[-1]) for p in parts]
    at = Times(tuple(seconds)).indices(pts, durations)
    for t, i in zip(seconds, at, strict=True):
        assert pts[i] <= t + 1e-6
        assert i == len(pts) - 1 or pts[i + 1] > t


def test_a_pts_written_to_the_microsecond_is_that_frame() -> None:
    pts, durations = np.arange(300) / 29.97, np.full(300, 1 / 29.97)
    times = Times(tuple(float(f"{t:.6f}") for t in pts))
    assert times.indices(pts, durations).tolist() == list(range(300))


@pytest.mark.parametrize("t", [-0.1, 4.0, 9.0, float("nan"), float("inf")])
def test_a_time_outside_the_source_is_refused(t: float) -> None:
    pts, durations = np.arange(100) / 25, np.full(100, 0.04)
    with pytest.raises(InputError, match=rf"time {t:g} s .* 4\.000 s long"):
        Times((1.0, t)).indices(pts, durations)
    with pytest.raises(InputError, match=r"must be in \[2, 3\.000\)"):
        Times((1.0,)).indices(pts, durations, 2.0, 3.0)
    with pytest.raises(InputError, match="no time"):
        Times(())


def test_keyframes() -> None:
    pts, durations = np.arange(100) / 25, np.full(100, 0.04)
    keys = Keyframes((0, 30, 60, 90))
    assert keys.indices(pts, durations).tolist() == [0, 30, 60, 90]
    assert keys.indices(pts, durations, 1.0, 2.4).tolist() == [30]
    assert keys.indices(pts, durations, 1.3, 2.0).tolist() == [32]  # none begins there
    assert Keyframes((0, 30, 60, 90), 2).indices(pts, durations).tolist() == [30, 90]
    assert Keyframes((0, 30, 60, 90), 9).indices(pts, durations).tolist() == [0, 30, 60, 90]
    with pytest.raises(InputError, match="at least 1"):
        Keyframes((0,), 0)


def test_keyframes_of_a_source() -> None:
    class Source:
        keyframes = np.array([0, 12], dtype=np.int64)

    assert Keyframes.of(Source()) == Keyframes((0, 12))
    assert Keyframes.of(Source(), 1) == Keyframes((0, 12), 1)
    with pytest.raises(InputError, match="does not say which of its frames are key frames"):
        Keyframes.of(object())


@given(st.integers(1, 300), st.integers(1, 40))
def test_thinned_is_even(count: int, n: int) -> None:
    at = thinned(count, n)
    assert len(at) == min(n, count)
    assert at[0] >= 0
    assert at[-1] < count
    if len(at) > 1:
        assert np.diff(at).min() >= 1
        assert np.diff(at).max() - np.diff(at).min() <= 1
