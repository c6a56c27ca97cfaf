"""Streams that go well: what comes, when, and how much of it may wait."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamvid.errors import DecodeError, InputError, SourceError
from flamvid.types import Frames
from flamvid.video.backlog import Backlog
from flamvid.video.live import LiveSource
from flamvid.video.sample import Fps
from flamvid.video.stream import Drop, Frame, Gap, Mark, Reconnect, Record, open_stream
from flamvid.video.timeline import Timeline
from tests.video.live_tools import child_of
from tests.video.media_server import MediaServer
from tests.video.numbered import BARS, FRAMES, HEIGHT, WIDTH, bars, ffmpeg, truth
from tests.video.rtsp_server import RtspServer


def seen(stream) -> tuple[list[Frame], list[Gap]]:
    events = list(stream)
    frames = [event for event in events if isinstance(event, Frame)]
    return frames, [event for event in events if isinstance(event, Gap)]


def stream_into(events: list, stream) -> None:
    events.extend(stream)


def shown_at(frames: list[Frame]) -> list[int]:
    return bars(torch.cat([frame.frames.pixels for frame in frames])[:, 1].numpy())


# Which frames: against ffmpeg's own order of them, by numbers that they carry


@pytest.fixture(scope="module")
def hls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x264 and the muxer as they are by default: B-frames, and MPEG-TS in two-second parts."""
    folder = tmp_path_factory.mktemp("hls")
    picture = f"color=black:s={WIDTH}x{HEIGHT}:r=25:d=3,{BARS}"
    cut = ("-g", "25", "-hls_time", "1", "-hls_list_size", "0")
    ffmpeg("-f", "lavfi", "-i", picture, "-c:v", "libx264", *cut, folder / "live.m3u8")
    ffmpeg("-f", "lavfi", "-i", picture, "-c:v", "libx264", folder / "whole.ts")
    return folder


@pytest.mark.parametrize("fps", [2.0, 7.0, None])
@pytest.mark.parametrize("form", ["hls", "http", "pipe", "file"])
def test_every_window_holds_the_right_frames(
    hls: Path, server: MediaServer, form: str, fps: float | None
) -> None:
    pts, number = truth(hls / "whole.ts")
    for path in hls.iterdir():
        server.routes[f"/{path.name}"] = path.read_bytes()
    whole = (hls / "whole.ts").read_bytes()

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(whole)

    server.routes["/endless"] = endless
    # A playlist that grows: its last part and its end come later.
    text = server.routes["/live.m3u8"].decode()
    began = time.monotonic()

    def growing(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        late = time.monotonic() - began > 0.5
        request.wfile.write((text if late else text[: text.rindex("#EXTINF")]).encode())

    server.routes["/live.m3u8"] = growing
    source, stdin = {
        "hls": (server.url("/live.m3u8"), None),
        "http": (server.url("/endless"), None),
        "pipe": ("-", io.BytesIO(whole)),
        "file": (str(hls / "whole.ts"), None),
    }[form]
    policy = Reconnect(first=0.1, patience=0.0 if form == "http" else 2.0)
    with open_stream(source, fps=fps, stdin=stdin, drop=Drop.WAIT, reconnect=policy) as stream:
        if form == "http":  # it may go on, for all we know
            with pytest.raises(DecodeError, match="hung up") as raised:
                stream_into(frames := [], stream)
            assert "\n" not in str(raised.value)
            assert isinstance(frames.pop(), Gap)
        else:
            stream_into(frames := [], stream)
    durations = np.diff(pts, append=pts[-1] + 0.04)
    wanted = np.arange(FRAMES) if fps is None else Fps(fps).indices(pts, durations)
    assert shown_at(frames)[: len(wanted)] == [number[i] for i in wanted]
    assert len(frames) - len(wanted) in (0, 1)
    at = pts[wanted] if fps is None else (np.arange(len(wanted)) + 0.5) / fps
    np.testing.assert_allclose([f.pts for f in frames][: len(wanted)], at, atol=2e-3)
    own = [f.frames.pts_seconds[0] for f in frames][: len(wanted)]
    np.testing.assert_allclose(own, pts[wanted], atol=2e-3)


@pytest.mark.parametrize("fps", [0.4, 1.0, 7.0, 40.0])
def test_the_child_chooses_the_frames_that_we_would(make_clip, fps: float) -> None:
    vfr = make_clip("v.mkv", "-fps_mode", "vfr", filters=",select='lt(n,30)+not(mod(n,7))'")
    with LiveSource(str(vfr), fps=fps) as there, LiveSource(str(vfr)) as here:
        got, expected = list(there.frames()), list(here.frames(fps=fps))
    # How long the last frame lasts the one is told and the other guesses.
    assert len(expected) >= len(got) > 0
    assert {f.pts_seconds[0] for f in expected[len(got) :]} <= {expected[-1].pts_seconds[0]}
    for ours, theirs in zip(expected, got, strict=False):
        assert ours.pts_seconds[0] == theirs.pts_seconds[0]
        assert torch.equal(ours.pixels, theirs.pixels)
    with LiveSource(str(vfr), fps=fps) as there, pytest.raises(InputError, match="was opened with"):
        there.frames(fps=fps)


# Files as streams


def test_a_file_in_real_time_or_as_fast_as_possible(make_clip, numbers) -> None:
    path = str(make_clip("a.mkv"))
    for realtime in (False, True):
        began = time.monotonic()
        with open_stream(path, fps=5.0, realtime=realtime, queue=2) as stream:
            assert not stream.endless
            time.sleep(0.3 if not realtime else 0.0)  # the file waits, and loses nothing
            frames, gaps = seen(stream)
        took = time.monotonic() - began
        assert numbers(torch.cat([f.frames.pixels for f in frames])) == list(range(2, 60, 5))
        assert not gaps
        # ffmpeg lets the first half second pass at once
        assert took < 1.5 if not realtime else 1.5 < took < 4
        assert stream.stats.dropped == 0


def test_going_on_where_a_reader_stopped(make_clip, clip) -> None:
    with open_stream(str(make_clip("a.mkv")), fps=5.0, after=Mark(1.1, time.time() - 60)) as stream:
        frames, gaps = seen(stream)
    np.testing.assert_allclose([f.pts for f in frames], np.arange(1.3, 2.4, 0.2))
    assert not gaps  # of a recording nothing is lost
    mark = Mark(100.0, time.time() - 60)
    with open_stream("-", fps=5.0, stdin=io.BytesIO(clip("a.ts")), after=mark) as stream:
        frames, gaps = seen(stream)
    (gap,) = gaps
    assert gap.start == 100.0
    assert gap.end == pytest.approx(160, abs=5)
    assert frames[0].pts == pytest.approx(gap.end + 0.1)


def test_a_hole_in_a_stream_is_a_gap(clip, make_clip, numbers) -> None:
    """Four seconds are missing: they are not filled with one frame."""
    later = make_clip("later.ts", "-output_ts_offset", "6.4").read_bytes()
    for fps in (5.0, None):
        with open_stream("-", fps=fps, stdin=io.BytesIO(clip("a.ts") + later)) as stream:
            frames, gaps = seen(stream)
        (gap,) = gaps
        assert gap.end - gap.start == pytest.approx(4, abs=0.5)
        shown = numbers(torch.cat([f.frames.pixels for f in frames]))
        assert max(map(shown.count, shown)) <= 3
        assert len(shown) in ((24, 25) if fps else (120,))
        at = [f.pts for f in frames]
        assert (np.diff(at) > 0).all()
        assert not any(gap.start < t < gap.end for t in at)


def test_a_file_may_show_a_picture_for_long(make_clip) -> None:
    slides = make_clip(
        "s.mkv", "-fps_mode", "vfr", filters=",select='lt(n,4)+gt(n,57)',setpts=N*PTS"
    )
    for fps in (2.0, None):
        with open_stream(str(slides), fps=fps) as stream:
            _, gaps = seen(stream)
        assert not gaps


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"queue": 0}, "must be at least 1"),
        ({"fps": -1.0}, "fps is -1"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"hwaccel": "cuda -i /etc/passwd"}, "a name that ffmpeg knows"),
    ],
)
def test_senseless_arguments(make_clip, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_stream(str(make_clip("a.mkv", frames=3)), **options)


def test_what_is_no_stream(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("Call me Ishmael. " * 99)
    for name, says in [
        ("", "is a folder"),
        ("none.mp4", "does not exist"),
        ("text.mp4", "can read"),
    ]:
        with pytest.raises(SourceError, match=says):
            open_stream(str(tmp_path / name))


def test_hardware_that_is_not_there(make_clip, numbers) -> None:
    path = str(make_clip("a.mkv"))
    with open_stream(path, fps=5.0, hwaccel="auto") as stream:  # falls back
        assert len(seen(stream)[0]) == 12
    for name in ("drm", "qsv", "nonsense"):  # one that does not open, that aborts, that is none
        with pytest.raises(DecodeError, match=f"can't be decoded by {name}.*auto") as raised:
            open_stream(path, hwaccel=name)
        assert "\n" not in str(raised.value)


# The parts


def frame(at: float) -> Frame:
    blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    return Frame(Frames(blank, np.array([at]), np.array([0.1])), at, 0.0)


@given(st.lists(st.sampled_from("fg-")), st.integers(1, 4), st.sampled_from(list(Drop)[:2]))
def test_a_backlog_is_bounded_and_loses_no_gap(script: list[str], most: int, drop: Drop) -> None:
    backlog, out, frames, gaps, taken = Backlog(most, drop), [], 0, 0.0, 0
    for n, act in enumerate(script):
        if act == "-" and len(backlog._events):
            out.append(backlog.get(0))
        elif act == "f":
            frames += 1
            backlog.put(frame(float(n)))
        elif act == "g":
            gaps += 0.5
            backlog.put(Gap(float(n), n + 0.5, f"reason {n}"))
        assert len(backlog) <= most
        assert len(backlog._events) <= 2 * most + 1
    backlog.end()
    out += iter(backlog.get, None)
    taken = sum(isinstance(event, Frame) for event in out)
    assert taken == frames - backlog.dropped
    assert (backlog.dropped == 0) or frames > most
    covered = sum(event.end - event.start for event in out if isinstance(event, Gap))
    assert covered >= gaps
    times = [e.pts if isinstance(e, Frame) else e.start for e in out]
    assert times == sorted(times)
    assert backlog.get() is None


def test_a_backlog_waits_and_says_so() -> None:
    with pytest.raises(TimeoutError):
        Backlog(1, Drop.WAIT).get(0.01)
    backlog = Backlog(1, Drop.WAIT)
    backlog.put(frame(0.0))
    backlog.end(DecodeError("it broke"))
    backlog.put(frame(1.0))  # nobody waits for a place any more
    assert isinstance(backlog.get(), Frame)
    with pytest.raises(DecodeError, match="it broke"):
        backlog.get()
    assert backlog.get() is None


connections = st.lists(
    st.tuples(
        st.floats(0, 100),
        st.lists(st.tuples(st.floats(0.001, 30), st.floats(0.001, 1)), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
)


@given(connections, st.sampled_from([None, 0.3, 2.0, 25.0]))
def test_one_clock_rises_through_all_connections(script, fps: float | None) -> None:
    times, last, end = Timeline(fps, 2.0), -1.0, 0.0
    for lost, steps in script:
        times.connect(lost)
        assert times.end == pytest.approx(end + lost)
        own = 0.0
        for step, lasts in steps:
            at, shown, gap = times.place(own, min(lasts, step))
            assert at > last
            assert shown <= at
            if gap is not None:
                assert last < gap.start < gap.end <= at
            last, end = at, times.end
            assert end >= at
            own += step


def test_waits_grow_are_random_and_repeat() -> None:
    policy = Reconnect(first=1.0, factor=2.0, longest=10.0, jitter=0.5, seed=3)
    waits = list(itertools.islice(policy.waits(), 8))
    full = [1, 2, 4, 8, 10, 10, 10, 10]
    assert all(f / 2 < w <= f for w, f in zip(waits, full, strict=True))
    assert len(set(waits)) == 8
    assert waits == list(itertools.islice(policy.waits(), 8))
    assert waits != list(itertools.islice(Reconnect(first=1.0, seed=4).waits(), 8))
    for wrong in ({"first": 0.0}, {"factor": 0.5}, {"longest": 0.1}, {"jitter": 1.0}):
        with pytest.raises(InputError, match=r"must be"):
            Reconnect(**wrong)


# Recording


def recorded(folder: Path) -> int:
    """How many frames its parts hold, by ffmpeg."""
    said = [ffmpeg("-i", part, "-f", "null", "-") for part in sorted(folder.iterdir())]
    return sum(int(re.findall(rb"frame= *(\d+)", text)[-1]) for text in said)


def test_what_is_watched_is_recorded_as_it_came(clip, tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] 100% | odd: name"
    for _ in range(2):  # two connections, whose parts stand beside each other
        stdin = io.BytesIO(clip("a.ts"))
        with open_stream("-", fps=5.0, stdin=stdin, record=Record(folder, 1.0)) as stream:
            assert len(seen(stream)[0]) == 12
    assert len(list(folder.iterdir())) == 4  # key frames are 1.2 s apart
    assert recorded(folder) == 120


def test_closing_finishes_the_recording(clip, tmp_path: Path) -> None:
    folder = tmp_path / "cam"
    with RtspServer(clip("cam.h264"), paced=True, loop=True) as server:
        with open_stream(server.url, fps=5.0, record=Record(folder)) as stream:
            for _ in range(8):
                stream.get(5)
            child = child_of(stream._live)
        assert child.returncode > 0  # it ended by itself
    assert recorded(folder) >= 35


def test_a_disk_that_is_full_ends_the_recording_alone(clip, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    record = Record(folder, 0.1)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder])
    if mounted.returncode:
        folder.rmdir()  # as good: nothing can be written there
    try:
        stdin = io.BytesIO(clip("a.ts") * 3)
        with open_stream("-", fps=5.0, stdin=stdin, record=record) as stream:
            assert len(seen(stream)[0]) == 36
            assert stream._live.unrecorded
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", folder], check=True)


def test_where_nothing_can_be_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be recorded to"):
        Record(tmp_path / "file")
    with pytest.raises(InputError, match="must be above 0"):
        Record(tmp_path, 0.0)
