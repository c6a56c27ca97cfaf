"""The times of live frames."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamvid.types import Frames
from flamvid.video.live import LiveSource, _Clock, at_ticks
from flamvid.video.sample import Fps
from tests.video.live_tools import (
    contents,
    piped,
)


def test_times_rise_across_joins_and_wraps(clip, make_clip, numbers) -> None:
    wrap = 2**33 / 90000
    wrapping = make_clip("wrap.ts", "-output_ts_offset", f"{wrap - 2.4:.3f}").read_bytes()
    for data in (clip("a.ts") * 3, wrapping):
        with piped(data) as live:
            shown, pts = contents(list(live.frames()), numbers)
        assert shown == list(range(60)) * (len(shown) // 60)
        np.testing.assert_allclose(np.diff(pts), 0.04, atol=1e-3)


def test_a_clock_that_jumps() -> None:
    clock = _Clock(nominal=0.04)
    placed = [clock.place(raw)[0] for raw in (5.0, 5.1, 5.2, 1.0, 1.1, None, 1.3, 9000.0, 9000.1)]
    np.testing.assert_allclose(placed, np.arange(9) / 10)
    assert clock.place(9050.1) == (pytest.approx(50.8), 1.0)  # a gap is a gap, and no duration
    assert clock.place(9050.1)[0] == pytest.approx(51.8)  # the same pts again


@given(st.lists(st.one_of(st.none(), st.floats(-1e5, 1e5)), min_size=2, max_size=40))
def test_times_always_rise(raw: list[float | None]) -> None:
    clock = _Clock()
    placed = [clock.place(pts)[0] for pts in raw]
    assert placed[0] == 0
    assert (np.diff(placed) > 0).all()


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40), st.floats(0.2, 20))
def test_ticks_agree_with_sampling(gaps: list[float], fps: float) -> None:
    durations = np.array(gaps)
    pts = np.concatenate([[0.0], np.cumsum(durations)[:-1]])
    blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    frames = [Frames(blank, pts[i : i + 1], durations[i : i + 1]) for i in range(len(pts))]
    got = [float(frame.pts_seconds[0]) for frame in at_ticks(iter(frames), fps)]
    expected = pts[Fps(fps).indices(pts, durations)].tolist()
    # One more where the last part of an interval is over half of it: that tick has come.
    assert got[: len(expected)] == expected
    assert len(got) - len(expected) in (0, 1)


def test_ticks_of_nothing() -> None:
    assert list(at_ticks(iter([]), 1.0)) == []


def test_a_stream_that_ends_before_its_first_tick(clip, numbers) -> None:
    with LiveSource("-", stdin=io.BytesIO(clip("a.ts")), fps=0.1) as live:
        shown, _ = contents(list(live.frames()), numbers)
        assert len(shown) == 1
        assert list(live.frames()) == []
