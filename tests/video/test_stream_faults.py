"""What goes wrong on the way to a stream, with real processes and sockets: each time it goes on."""

from __future__ import annotations

import io
import itertools
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid.errors import DecodeError
from flamvid.video.stream import Drop, Event, Frame, Gap, Reconnect, Stream, open_stream
from tests.video.live_tools import camera, child_of, ffmpeg
from tests.video.media_server import MediaServer, Proxy, free_port, paced
from tests.video.numbered import BARS, HEIGHT, WIDTH, bars
from tests.video.rtsp_server import RtspServer

SOON = Reconnect(first=0.1, longest=0.3)
WATCHDOG = 1.0  # seconds


def watched(source: str, **options) -> Stream:
    return open_stream(source, **({"fps": 10.0, "timeout": WATCHDOG, "reconnect": SOON} | options))


def until_gap(stream: Stream, within: float, after: int = 5) -> tuple[list[Event], Gap]:
    """Events up to the next gap and so many frames after it."""
    events: list[Event] = []
    deadline = time.monotonic() + within
    while not any(isinstance(event, Gap) for event in events):
        event = stream.get(max(0.0, deadline - time.monotonic()))
        assert event is not None, "the stream has ended"
        events.append(event)
    gap = events[-1]
    assert isinstance(gap, Gap)
    for _ in range(after):
        event = stream.get(5)
        assert isinstance(event, Frame)
        events.append(event)
    check(events)
    return events, gap


def check(events: list[Event]) -> None:
    """Times rise, and frames are on their side of each gap."""
    times = [e.pts for e in events if isinstance(e, Frame)]
    assert (np.diff(times) > 0).all()
    for before, after in itertools.pairwise(events):
        if isinstance(after, Gap):
            assert after.start <= after.end
            assert isinstance(before, Frame)
            assert before.pts <= after.start
        elif isinstance(before, Gap):
            assert before.end <= after.pts + 1e-9


@pytest.fixture
def cam(clip, tmp_path: Path) -> Path:
    (tmp_path / "cam.h264").write_bytes(clip("cam.h264"))
    return tmp_path / "cam.h264"


def test_a_server_that_is_killed_and_started_again(cam: Path) -> None:
    port = free_port()
    with camera(cam, port) as (server, url), watched(url) as stream:
        before = [stream.get(5) for _ in range(5)]
        assert all(isinstance(event, Frame) for event in before)
        server.kill()
        server.wait()
        killed = time.time()
        while stream.outage is None:
            time.sleep(0.01)
        assert time.time() - killed < WATCHDOG + 1
        time.sleep(0.7)
        with camera(cam, port):
            events, gap = until_gap(stream, within=5)
            assert (stream.stats.reconnects, stream.stats.gaps) == (1, 1)
            assert stream.outage is None
        assert "hung up" in gap.reason or "cut" in gap.reason
        assert gap.end - gap.start == pytest.approx(time.time() - killed, abs=0.8)
        # The clock of the stream goes as the one on the wall does, over the gap too.
        first, last = before[0], events[-1]
        assert isinstance(first, Frame)
        assert isinstance(last, Frame)
        assert last.pts - first.pts == pytest.approx(last.wall - first.wall, abs=1.0)


@pytest.mark.parametrize("how", ["cut", "hold"])
def test_a_network_that_is_cut_or_falls_silent(cam: Path, how: str) -> None:
    with (
        camera(cam) as (_, url),
        Proxy(int(url.split(":")[2].split("/")[0])) as proxy,
        watched(f"rtsp://127.0.0.1:{proxy.port}/cam") as stream,
    ):
        assert isinstance(stream.get(5), Frame)
        child = child_of(stream._live)
        proxy.set(how)
        began = time.monotonic()
        while stream.outage is None:
            time.sleep(0.01)
        assert time.monotonic() - began < WATCHDOG + 0.7  # no hang beyond the watchdog
        assert child.wait(2) is not None
        time.sleep(0.5)
        proxy.set("forward")
        _, gap = until_gap(stream, within=5)
        assert gap.end - gap.start > 0.4
        assert stream.stats.reconnects == 1


def test_a_server_that_is_gone_for_good(cam: Path) -> None:
    patience = Reconnect(first=0.1, longest=0.2, patience=1.0)
    with camera(cam) as (server, url), watched(url, reconnect=patience) as stream:
        assert isinstance(stream.get(5), Frame)
        server.kill()
        events: list[Event] = []
        began = time.monotonic()
        with pytest.raises(DecodeError, match=r"was lost at .* for good") as raised:
            events.extend(stream)
        assert 0.5 < time.monotonic() - began < 4
        assert isinstance(events[-1], Gap)
        assert "\n" not in str(raised.value)
        assert list(stream) == []


def test_a_decoder_that_crashes(cam: Path) -> None:
    with camera(cam) as (_, url), watched(url) as stream:
        assert isinstance(stream.get(5), Frame)
        os.kill(child_of(stream._live).pid, signal.SIGSEGV)
        _, gap = until_gap(stream, within=5)
        assert "crashed" in gap.reason


def test_another_resolution_in_the_middle(clip, make_clip) -> None:
    recipe = ("-bf", "0", "-x264-params", "slices=1:sliced-threads=0")
    large = make_clip("large.h264", *recipe, size="128x96").read_bytes()
    both = clip("cam.h264") + large
    with (
        RtspServer(both, paced=True, loop=True) as server,
        watched(server.url, size=(24, 32)) as stream,
    ):
        frames = [stream.get(5) for _ in range(30)]
        assert stream.stats.gaps == 0
    shapes = {event.frames.pixels.shape for event in frames if isinstance(event, Frame)}
    assert shapes == {(1, 3, 24, 32)}
    steps = np.diff([e.pts for e in frames if isinstance(e, Frame)])
    assert ((steps > 0.099) & (steps < 0.201)).all()  # ticks begin anew with each resolution


def test_another_codec_in_the_middle(server: MediaServer, make_clip) -> None:
    filters = ",noise=alls=30:allf=t"  # so much data that ffmpeg does not see its end at once
    h264 = make_clip("a.ts", frames=100, filters=filters, size="160x120").read_bytes()
    mpeg2 = make_clip(
        "b.ts", "-c:v", "mpeg2video", "-b:v", "2M", frames=100, filters=filters, size="160x120"
    ).read_bytes()
    answers = itertools.chain([h264 + mpeg2 * 3], itertools.repeat(mpeg2 * 3))

    def answer(request: BaseHTTPRequestHandler) -> None:
        paced(request, next(answers), rate=len(h264) / 2)

    server.routes["/live.ts"] = answer
    with watched(server.url("/live.ts")) as stream:
        assert stream.info.codec == "h264"
        until_gap(stream, within=8)
        assert stream.info.codec == "mpeg2video"


def test_a_playlist_that_is_gone_for_a_while(server: MediaServer, tmp_path: Path) -> None:
    """A real live playlist of ffmpeg's; what comes after it is new, none of it twice."""
    down = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        path = tmp_path / request.path.lstrip("/")
        if down.is_set() or not path.exists():
            request.send_error(503)
            return
        request.send_response(200)
        request.end_headers()
        request.wfile.write(path.read_bytes())

    server.anything = answer
    picture = ("-re", "-f", "lavfi", "-i", f"color=black:s={WIDTH}x{HEIGHT}:r=25,{BARS}")
    cut = ("-c:v", "libx264", "-g", "12", "-hls_time", "0.5", "-hls_list_size", "4")
    with ffmpeg(*picture, *cut, str(tmp_path / "live.m3u8")):
        while not (tmp_path / "live.m3u8").exists():
            time.sleep(0.05)
        with watched(server.url("/live.m3u8"), fps=4.0) as stream:
            threading.Timer(1.0, down.set).start()
            threading.Timer(2.5, down.clear).start()
            events, gap = until_gap(stream, within=8)
    assert 0.5 < gap.end - gap.start < 5
    frames = [event.frames.pixels[:, 1] for event in events if isinstance(event, Frame)]
    shown = bars(torch.cat(frames).numpy())
    assert shown == sorted(set(shown))  # all below 256, ten seconds


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_of_many_connections(clip) -> None:
    hasty = Reconnect(first=0.01, longest=0.01)
    with RtspServer(clip("cam.h264")) as server, watched(server.url, reconnect=hasty) as stream:

        def held() -> tuple[int, int]:
            return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

        until_gap(stream, within=5)
        before = held()
        for _ in range(8):
            until_gap(stream, within=5)
        fds, threads = held()
    assert stream.stats.reconnects >= 9
    assert fds <= before[0] + 4  # sockets of the server, which is in this process
    assert threads <= before[1] + 2


# The data


def test_garbage_in_the_middle(clip, numbers) -> None:
    data = clip("a.ts")
    noise = np.random.default_rng(0).bytes(len(data) * 10 * 10 // 24)  # ten seconds of it
    for garbage in (noise, bytes(len(noise))):
        with watched("-", stdin=io.BytesIO(data + garbage + data)) as stream:
            events = list(stream)
            assert stream.stats.garbage > 0
        check(events)
        shown = numbers(pixels(events))
        assert shown[0] < 5
        assert shown[-1] > 55
        assert shown.count(shown[-1]) >= 2  # the second half is there, too
        assert any(isinstance(event, Gap) for event in events)


def pixels(events: list[Event]) -> torch.Tensor:
    return torch.cat([event.frames.pixels for event in events if isinstance(event, Frame)])


def test_a_clock_that_is_set_back(make_clip, clip, numbers) -> None:
    late = make_clip("late.ts", "-output_ts_offset", "30").read_bytes()
    with watched("-", stdin=io.BytesIO(late + clip("a.ts"))) as stream:
        events = list(stream)
    check(events)
    (gap,) = (event for event in events if isinstance(event, Gap))
    assert gap.start == gap.end
    assert 0 < gap.start <= 2.4  # ffmpeg tells of it when it reads ahead: here, where nothing waits
    assert "clock" in gap.reason
    assert len(numbers(pixels(events))) == 48


def test_the_wrap_after_26_hours(make_clip, numbers) -> None:
    wrap = 2**33 / 90000
    data = make_clip("wrap.ts", "-output_ts_offset", f"{wrap - 2.4:.3f}").read_bytes()
    with watched("-", stdin=io.BytesIO(data)) as stream:
        events = list(stream)
    assert not any(isinstance(event, Gap) for event in events)
    shown = numbers(pixels(events))
    assert shown == sorted(shown)
    np.testing.assert_allclose(np.diff([e.pts for e in events if isinstance(e, Frame)]), 0.1)


# The consumer


@pytest.mark.parametrize("drop", [Drop.OLDEST, Drop.NEWEST])
def test_a_consumer_ten_times_too_slow(cam: Path, drop: Drop) -> None:
    with camera(cam) as (_, url), watched(url, fps=20.0, queue=3, drop=drop) as stream:
        events: list[Event | None] = []
        for _ in range(4):
            time.sleep(0.5)
            assert stream.stats.waiting <= 3
            events.append(stream.get(0))
            if drop is Drop.OLDEST:  # what is seen is of now
                assert isinstance(events[-1], Frame)
                assert time.time() - events[-1].wall < 0.3
        stats = stream.stats
        assert 20 < stats.dropped == stats.received - stats.waiting - 4
        check([event for event in events if event is not None])


def test_closing_is_quick_whatever_goes_on(cam: Path) -> None:
    def closes(stream: Stream) -> None:
        began = time.monotonic()
        child = child_of(stream._live) if stream._live._child else None
        stream.close()
        stream.close()
        assert time.monotonic() - began < 1
        assert not stream._thread.is_alive()
        assert child is None or child.returncode == -signal.SIGKILL
        assert list(stream) == []

    with camera(cam) as (server, url):
        closes(watched(url))
        waiting = watched(url, queue=1, drop=Drop.WAIT)
        time.sleep(0.5)
        closes(waiting)
        lost = watched(url, reconnect=Reconnect(first=20.0, jitter=0.0))
        server.kill()
        while lost.outage is None:
            time.sleep(0.01)
        closes(lost)
