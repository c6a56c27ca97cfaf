"""Live reading against real processes and servers, all of them on this machine's loopback."""

from __future__ import annotations

import gc
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flamvid.errors import DecodeError, DecoderLost, InputError, SourceError
from flamvid.types import Frames
from flamvid.video.address import Kind
from flamvid.video.live import LiveSource, _Clock, at_ticks, is_endless, open_live, recorded
from flamvid.video.live_log import LiveLog
from flamvid.video.sample import Fps
from tests.video.media_server import MediaServer, RtspServer, free_port

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
VFR = [*range(30), *range(30, 60, 3)]  # of 60 frames the first 30, then every third


@pytest.fixture(scope="module")
def clip(make_clip) -> Callable[[str], bytes]:
    """A clip of 60 numbered frames as bytes, by name; made once."""
    vfr = {"filters": ",select='lt(n,30)+not(mod(n,3))'"}
    recipes = {
        "a.ts": (("-bf", "3"), {}),
        "a.mkv": (("-bf", "3"), {}),
        "a.flv": ((), {}),
        "fast.mp4": (("-movflags", "+faststart"), {}),
        "slow.mp4": ((), {}),
        "vfr.mkv": (("-fps_mode", "vfr"), vfr),
        "vfr.ts": (("-fps_mode", "vfr"), vfr),
        "cam.h264": (("-bf", "0", "-x264-params", "slices=1:sliced-threads=0"), {}),
        # Too large to be kept whole while its index is looked for.
        "large.mp4": (("-crf", "1"), {"size": "160x120", "filters": ",noise=alls=20:allf=t"}),
    }
    made: dict[str, bytes] = {}

    def get(name: str) -> bytes:
        if name not in made:
            options, more = recipes[name]
            made[name] = make_clip(name, *options, **more).read_bytes()
        return made[name]

    return get


@pytest.fixture
def server() -> Iterator[MediaServer]:
    with MediaServer() as running:
        yield running


@contextmanager
def ffmpeg(*args: str, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A sender or a server of ffmpeg's, gone at the end of the block."""
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-nostdin", *args]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def piped(data: bytes, **options) -> LiveSource:
    """The bytes as standard input: through a pipe, which can't seek."""
    return open_live("-", stdin=io.BytesIO(data), **options)


def contents(frames: list[Frames], numbers) -> tuple[list[int], list[float]]:
    shown = numbers(torch.cat([frame.pixels for frame in frames]))
    return shown, [float(frame.pts_seconds[0]) for frame in frames]


def child_of(live: LiveSource) -> subprocess.Popen[bytes]:
    assert live._child is not None
    return live._child.process


def one_line(raised: pytest.ExceptionInfo[Exception], *foreign: str) -> None:
    text = str(raised.value)
    assert text.isprintable()
    assert not any(word in text for word in ("@ 0x", "fd:", "Error opening", *foreign))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and running(pid):
        time.sleep(0.02)
    return not running(pid)


# Standard input


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "fast.mp4", "a.flv"])
def test_a_pipe_gives_every_frame_at_its_time(clip, numbers, name: str) -> None:
    with piped(clip(name)) as live:
        assert live.info is not None
        assert (live.info.width, live.info.height, live.info.codec) == (64, 48, "h264")
        assert live.info.fps == 25
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.ts"])
def test_a_pipe_of_variable_frame_rate(clip, numbers, name: str) -> None:
    with piped(clip(name)) as live:
        frames = list(live.frames())
    shown, pts = contents(frames, numbers)
    assert shown == VFR
    np.testing.assert_allclose(pts, np.array(VFR) / 25, atol=1e-3)
    assert frames[-1].duration_seconds[0] == pytest.approx(0.12, abs=2e-3)


@pytest.mark.parametrize("fps", [1.0, 7.0, 40.0])
def test_ticks_are_those_of_sampling_the_whole(clip, numbers, fps: float) -> None:
    with piped(clip("vfr.mkv")) as live:
        shown, pts = contents(list(live.frames(fps=fps)), numbers)
    times, durations = np.array(VFR) / 25, np.diff(np.array(VFR) / 25, append=2.4)
    expected = Fps(fps).indices(times, durations)
    assert shown[: len(expected)] == np.array(VFR)[expected].tolist()
    assert len(shown) - len(expected) in (0, 1)
    np.testing.assert_allclose(pts[: len(expected)], times[expected], atol=1e-3)


def test_frames_come_while_a_pipe_is_still_fed(clip, tmp_path: Path, numbers) -> None:
    (tmp_path / "a.ts").write_bytes(clip("a.ts"))
    sender = ("-re", "-i", str(tmp_path / "a.ts"), "-c", "copy", "-f", "mpegts", "-")
    with (
        ffmpeg(*sender, stdout=subprocess.PIPE) as process,
        open_live("-", stdin=process.stdout) as live,
    ):
        frames = live.frames()
        first = [next(frames) for _ in range(5)]
        assert process.poll() is None  # it is not at its end
        shown, pts = contents([*first, *frames], numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


def test_a_stream_that_is_joined_late_begins_with_a_whole_picture(clip, numbers) -> None:
    cut = len(clip("a.ts")) // 188 // 4 * 188
    with piped(clip("a.ts")[cut:]) as live:
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(30, 60))  # the keyframe and what follows
    assert pts[0] == 0


def test_an_index_at_the_end_needs_a_file(clip, numbers, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"index is at its end.*faststart") as raised:
        piped(clip("large.mp4"))
    one_line(raised)
    path = tmp_path / "large.mp4"
    path.write_bytes(clip("large.mp4"))
    with path.open("rb") as file, open_live("-", stdin=file, size=(48, 64)) as live:
        assert contents(list(live.frames()), numbers)[0] == list(range(60))


@pytest.mark.parametrize("data", [b"", b"Call me Ishmael. " * 1000, bytes(range(256)) * 999])
def test_a_pipe_without_video(data: bytes) -> None:
    with pytest.raises(DecodeError, match="standard input holds no video") as raised:
        piped(data)
    one_line(raised)


def test_a_playlist_on_a_pipe_is_not_followed(clip, tmp_path: Path) -> None:
    (tmp_path / "a.ts").write_bytes(clip("a.ts"))
    for text in (f"#EXTM3U\n#EXTINF:2,\nfile://{tmp_path}/a.ts\n", f"ffconcat\nfile {tmp_path}/a"):
        with pytest.raises(DecodeError, match="holds no video"):
            piped(text.encode())


def test_sound_alone(tmp_path: Path, run_ffmpeg) -> None:
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "sound.ts"))
    with pytest.raises(DecodeError, match="standard input has no video stream"):
        piped((tmp_path / "sound.ts").read_bytes())


def test_nothing_on_a_pipe_in_time() -> None:
    read, write = os.pipe()
    began = time.monotonic()
    with os.fdopen(read, "rb") as stream, pytest.raises(DecodeError, match=r"within 0\.5 s"):
        open_live("-", stdin=stream, timeout=0.5)
    os.close(write)
    assert time.monotonic() - began < 5


def test_standard_input_that_is_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "rb") as terminal, pytest.raises(SourceError, match="a terminal"):
        open_live("-", stdin=terminal)
    os.close(ours)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match="standard input is closed"):
        open_live("-")


def test_the_standard_input_of_this_process(
    clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.ts").write_bytes(clip("a.ts"))
    with (tmp_path / "a.ts").open() as text:
        monkeypatch.setattr(sys, "stdin", text)
        with open_live("-") as live:
            assert len(list(live.frames())) == 60


# What a frame is


def test_size(clip) -> None:
    with piped(clip("a.mkv"), size=(30, 50)) as live:
        assert live.info is not None
        assert (live.info.height, live.info.width) == (48, 64)
        first = next(live.frames())
        second = next(live.frames(size=(20, 10)))  # goes on
        assert first.pixels.shape == (1, 3, 30, 50)
        assert second.pixels.shape == (1, 3, 20, 10)
        assert second.pixels.float().mean() > first.pixels.float().mean() + 1


def test_upright_with_square_pixels(make_clip, run_ffmpeg, tmp_path: Path) -> None:
    wide = make_clip("wide.mkv", frames=3, size="96x48", filters=",setsar=2")
    turned = tmp_path / "turned.mp4"
    clip = make_clip("upright.mp4", frames=3, size="96x48")
    run_ffmpeg("-display_rotation:v:0", "90", "-i", str(clip), "-c", "copy", str(turned))
    for path, size, shape, rotation in [
        (wide, None, (48, 192), 0),
        (wide, (10, 20), (48, 192), 0),
        (turned, None, (96, 48), 270),
        (turned, (10, 20), (96, 48), 270),
    ]:
        with piped(path.read_bytes(), size=size) as live:
            assert live.info is not None
            assert (live.info.height, live.info.width, live.info.rotation) == (*shape, rotation)
            assert next(live.frames()).pixels.shape[2:] == (size or shape)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    clear.putpixel((3, 2), (0, 0, 255, 255))
    file = io.BytesIO()
    clear.save(file, "png")
    with piped(file.getvalue()) as live:
        (frame,) = live.frames()
    assert frame.pixels[0, :, 2, 3].tolist() == [0, 0, 255]
    assert frame.pixels[0, :, 0, 0].tolist() == [255, 255, 255]


def test_hdr_is_refused(make_clip) -> None:
    tags = ",setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    with pytest.raises(DecodeError, match="is HDR"):
        piped(make_clip("hdr.mkv", frames=3, filters=tags).read_bytes())


def test_a_header_that_claims_a_huge_picture() -> None:
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\1\x86\xa0" * 2 + b"\x08\2\0\0\0"
    with pytest.raises(DecodeError) as raised:
        piped(header + b"\xae\x42\x60\x82" + b"\0\0\0\x09IDAT" + bytes(1000))
    one_line(raised)


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_frame(make_clip, clip) -> None:
    large = make_clip("large.ts", frames=10, size="128x96").read_bytes()
    with piped(clip("a.ts") + large) as live:
        assert {frame.pixels.shape for frame in live.frames()} == {(1, 3, 48, 64)}


# Time


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


# Bounds


class Endless(io.RawIOBase):
    """One stream over and over; counts what was taken of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        at = self.taken % len(self.data)
        part = self.data[at : at + size]
        self.taken += len(part)
        return part


def resident(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_endless_stream_takes_no_memory_and_waits_for_its_reader(clip) -> None:
    stream = Endless(clip("a.ts"))
    with open_live("-", stdin=stream) as live:
        frames = live.frames()
        last = -1.0

        def read(count: int) -> tuple[int, int]:
            nonlocal last
            for frame in itertools.islice(frames, count):
                assert frame.pts_seconds[0] > last
                last = float(frame.pts_seconds[0])
            return resident("self"), resident(child_of(live).pid)

        before = read(1500)
        after = read(6000)
        assert last > 290
        # Nobody reads: nothing is taken any more.
        time.sleep(0.3)
        taken = stream.taken
        time.sleep(0.3)
        assert stream.taken == taken
    assert after[0] - before[0] < 4 << 20
    assert after[1] - before[1] < 16 << 20


# The child's end


def test_a_decoder_that_crashes(clip) -> None:
    with piped(clip("a.ts")) as live:
        frames = live.frames()
        next(frames)
        os.kill(child_of(live).pid, signal.SIGSEGV)
        with pytest.raises(DecoderLost, match="crashed") as raised:
            list(frames)
    one_line(raised)


@pytest.fixture
def stalling(clip, server: MediaServer) -> str:
    """An address that sends half a clip, and then nothing."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(clip("a.ts")[: 188 * 90])
        server.over.wait(60)

    server.routes["/stalls.ts"] = answer
    return server.url("/stalls.ts")


def test_closing_ends_the_child_at_once(stalling: str) -> None:
    with open_live(stalling) as live:
        child = child_of(live)
        assert child.poll() is None
    assert child.returncode == -signal.SIGKILL
    live.close()
    assert list(live.frames()) == []


def test_an_exception_ends_the_child(stalling: str) -> None:
    live = open_live(stalling)
    child = child_of(live)
    with pytest.raises(ZeroDivisionError), live:
        _ = 1 / 0
    assert child.returncode == -signal.SIGKILL


def test_a_source_that_is_forgotten_takes_its_child_along(stalling: str) -> None:
    live = open_live(stalling)
    frames = live.frames()
    next(frames)
    child = child_of(live)
    del live, frames
    gc.collect()
    assert child.returncode == -signal.SIGKILL


@pytest.fixture
def hanging(tmp_path: Path) -> str:
    """A program in ffmpeg's place that does nothing, and does not mind being asked to end."""
    fake = tmp_path / "ffmpeg"
    fake.write_text('#!/bin/sh\ntrap "" TERM INT HUP PIPE\nwhile :; do sleep 1; done\n')
    fake.chmod(0o755)
    return str(fake)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_child_outlives_the_interpreter(clip, hanging: str, tmp_path: Path) -> None:
    # One interpreter, which takes long to load torch; copies of it end in different ways.
    (tmp_path / "a.ts").write_bytes(clip("a.ts"))
    code = f"""
import os, signal, sys
from flamvid.video import live
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
whole = live.open_live("-", stdin=open({str(tmp_path / "a.ts")!r}, "rb"))
if os.fork() == 0:
    sys.exit()  # which leaves the child to its owner
os.wait()
print("frames", len(list(whole.frames())), flush=True)
for way in ("end", "error", "SIGKILL"):
    if os.fork():
        os.wait()
        continue
    if way == "SIGKILL":  # then we can end nobody: a child ends when it next writes
        source = live.open_live("-", stdin=open({str(tmp_path / "a.ts")!r}, "rb"))
    else:
        live.ffmpeg_exe = lambda: {hanging!r}
        source = live.LiveSource("udp://127.0.0.1:9")
    print(way, source._child.process.pid, flush=True)
    if way == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "error":
        1 / 0
    sys.exit()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pids = dict(line.split() for line in done.stdout.splitlines())
    assert pids.pop("frames") == "60"
    assert list(pids) == ["end", "error", "SIGKILL"]
    assert all(gone(int(pid), 5.0) for pid in pids.values())


def test_a_stream_that_stalls_is_given_up(stalling: str, numbers) -> None:
    began = time.monotonic()
    live = open_live(stalling, timeout=1.5)
    child = child_of(live)
    got = []
    with pytest.raises(DecodeError, match=r"within 1\.5 s|broke off") as raised:
        got.extend(live.frames())
    one_line(raised)
    assert numbers(torch.cat([frame.pixels for frame in got]))[:3] == [0, 1, 2]
    assert child.returncode is not None
    assert time.monotonic() - began < 10


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, hanging: str) -> None:
    monkeypatch.setattr("flamvid.video.live_child.ffmpeg_exe", lambda: hanging)
    live = LiveSource("http://127.0.0.1:9/x", timeout=0.5)
    child = child_of(live)
    with pytest.raises(DecodeError, match=r"gave no answer within 0\.5 s"):
        live.connect()
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(DecodeError, match="closed"):
        live.connect()


def test_senseless_arguments() -> None:
    for options in ({"timeout": 0.0}, {"timeout": float("nan")}, {"size": (0, 4)}):
        with pytest.raises(InputError, match=r"must be"):
            open_live("http://127.0.0.1/x", **options)
    with LiveSource("udp://127.0.0.1:9") as live:
        with pytest.raises(InputError, match="fps is 0"):
            live.frames(fps=0.0)
        with pytest.raises(InputError, match="size is"):
            live.frames(size=(4, 0))


# HTTP and HLS


@pytest.mark.parametrize("name", ["fast.mp4", "large.mp4", "a.ts", "a.mkv"])
def test_a_file_on_a_web_server(clip, server: MediaServer, numbers, name: str) -> None:
    server.routes["/clip"] = clip(name)
    assert recorded(server.url("/clip"))
    with open_live(server.url("/clip"), size=(48, 64)) as live:
        assert live.info is not None
        assert not is_endless(live.info)
        assert live.info.duration == pytest.approx(2.4, abs=0.15)
        assert contents(list(live.frames()), numbers)[0] == list(range(60))


def test_a_web_server_without_ranges(clip, numbers) -> None:
    with MediaServer(ranges=False) as server:
        server.routes |= {"/fast": clip("fast.mp4"), "/large": clip("large.mp4")}
        with open_live(server.url("/fast")) as live:
            assert contents(list(live.frames()), numbers)[0] == list(range(60))
        with pytest.raises(DecodeError, match="index is at its end"):
            open_live(server.url("/large"))


def test_a_stream_without_end(stalling: str) -> None:
    assert not recorded(stalling)
    assert recorded("/some/file.mp4")
    for source in ("-", "cam:0", "rtsp://127.0.0.1/x", "udp://127.0.0.1:9"):
        assert not recorded(source)


@pytest.fixture(scope="module")
def hls(clip, tmp_path_factory: pytest.TempPathFactory, run_ffmpeg_once) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hls")
    (folder / "a.ts").write_bytes(clip("a.ts"))
    cut = ("-c", "copy", "-f", "hls", "-hls_time", "1", "-hls_list_size", "0")
    run_ffmpeg_once("-i", str(folder / "a.ts"), *cut, str(folder / "live.m3u8"))
    return {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run_ffmpeg_once() -> Callable[..., None]:
    def run(*args: str) -> None:
        subprocess.run([FFMPEG, "-loglevel", "error", *args], check=True)

    return run


def test_a_playlist_with_an_end_is_recorded(hls, server: MediaServer, numbers) -> None:
    server.routes |= hls
    assert recorded(server.url("/live.m3u8"))
    with open_live(server.url("/live.m3u8")) as live:
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


def test_a_playlist_that_grows(hls, server: MediaServer, numbers) -> None:
    server.routes |= hls
    text = hls["/live.m3u8"].decode().replace("#EXT-X-TARGETDURATION:2", "#EXT-X-TARGETDURATION:1")
    first, second = (at for at in range(len(text)) if text.startswith("#EXTINF", at))
    parts = [text[:second], text.replace("#EXT-X-ENDLIST", ""), text]
    began = time.monotonic()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/vnd.apple.mpegurl")
        request.end_headers()
        request.wfile.write(parts[min(2, int((time.monotonic() - began) / 0.7))].encode())

    assert first < second
    server.routes["/live.m3u8"] = answer
    with open_live(server.url("/live.m3u8")) as live:
        assert live.info is not None
        assert is_endless(live.info)
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


@pytest.mark.parametrize(
    "to",
    ["file://{}", "{}", "file:{}", "concat:{}", "subfile,,start,0,end,0,,:{}", "crypto+file://{}"],
)
def test_a_playlist_on_the_network_opens_no_file(
    clip, server: MediaServer, tmp_path: Path, to: str
) -> None:
    (tmp_path / "secret.ts").write_bytes(clip("a.ts"))  # would play, if it were opened
    target = to.format(tmp_path / "secret.ts")
    server.routes["/x.m3u8"] = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n".encode()
    )
    with pytest.raises(DecodeError) as raised:
        open_live(server.url("/x.m3u8"), timeout=5)
    one_line(raised)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MAP:URI="file:///etc/passwd"\n#EXTINF:2,\na.ts\n',
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF:2,\na.ts\n',
        "ffconcat version 1.0\nfile /etc/hostname\n",
        "v=0\nm=video 5004 RTP/AVP 33\n",
    ],
)
@pytest.mark.parametrize("name", ["/x.m3u8", "/x"])
def test_lists_that_point_at_this_machine(server: MediaServer, text: str, name: str) -> None:
    server.routes[name] = text.encode()
    with pytest.raises(DecodeError) as raised:
        open_live(server.url(name), timeout=5)
    one_line(raised)


def test_a_redirection_to_a_file_is_not_followed(server: MediaServer, tmp_path: Path, clip) -> None:
    (tmp_path / "secret.ts").write_bytes(clip("a.ts"))

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", f"file://{tmp_path}/secret.ts")
        request.end_headers()

    server.routes["/away.ts"] = answer
    with pytest.raises(DecodeError) as raised:
        open_live(server.url("/away.ts"), timeout=5)
    one_line(raised)


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (404, r"does not exist on that server \(404\)"),
        (403, r"refuses access \(403\)"),
        (401, r"refuses access \(401\)"),
        (500, "the server answers 500"),
        (b"", "is no video"),
        (b"<html><body>Call me Ishmael.</body></html>" * 99, "is no video"),
        (bytes(range(256)) * 99, "is no video"),
    ],
)
def test_what_a_web_server_may_say_instead(server: MediaServer, route, says: str) -> None:
    server.routes["/clip.mp4"] = route
    with pytest.raises(DecodeError, match=says) as raised:
        open_live(server.url("/clip.mp4"))
    one_line(raised)


def test_a_server_that_never_answers(server: MediaServer) -> None:
    server.routes["/"] = lambda request: server.over.wait(60) and None
    began = time.monotonic()
    with pytest.raises(DecodeError, match="gave no answer within 1 s") as raised:
        open_live(server.url("/"), timeout=1.0)
    one_line(raised)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off(clip, numbers, ranges: bool) -> None:
    data = clip("large.mp4") if ranges else clip("a.mkv")

    def answer(request: BaseHTTPRequestHandler) -> None:
        wanted = re.match(r"bytes=(\d+)-", request.headers.get("Range", "") if ranges else "")
        begin = int(wanted[1]) if wanted else 0
        request.send_response(206 if wanted else 200)
        if ranges:
            request.send_header("Accept-Ranges", "bytes")
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        request.wfile.write(data[begin : begin + len(data) * 3 // 5])

    got = []
    with MediaServer() as server:
        server.routes["/clip"] = answer
        with open_live(server.url("/clip"), size=(48, 64)) as live:
            frames = live.frames()
            if ranges:  # it goes on where it was
                got = list(frames)
            else:
                with pytest.raises(DecodeError, match=r"broke off at .* was cut") as raised:
                    got.extend(frames)
                one_line(raised)
    assert contents(got, numbers)[0][:60] == list(range(60 if ranges else len(got)))


@pytest.mark.parametrize("name", ["fast.mp4", "a.mkv"])
def test_a_pipe_that_is_cut_short(clip, numbers, name: str) -> None:
    got = []
    with (
        piped(clip(name)[: len(clip(name)) * 9 // 10]) as live,
        pytest.raises(DecodeError, match=r"broke off at .* ends too early") as raised,
    ):
        got.extend(live.frames())
    one_line(raised)
    assert contents(got, numbers)[0][:30] == list(range(min(30, len(got))))


@pytest.mark.parametrize("ranges", [False, True])
def test_a_stream_of_unknown_length_ends_where_it_ends(clip, server, numbers, ranges) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if ranges:
            request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        request.wfile.write(clip("a.ts"))

    server.routes["/live"] = answer
    with open_live(server.url("/live"), timeout=3) as live:
        got = list(itertools.islice(live.frames(), 200))
    assert contents(got, numbers)[0] == list(range(60))


def test_motion_jpeg_of_a_web_camera(server: MediaServer, run_ffmpeg, tmp_path: Path) -> None:
    run_ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=64x48:r=5:d=2", "-c:v", "mjpeg", "-f", "mpjpeg"),
        str(tmp_path / "cam"),
    )

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace;boundary=ffmpeg")
        request.end_headers()
        request.wfile.write((tmp_path / "cam").read_bytes())

    server.routes["/video"] = answer
    with open_live(server.url("/video")) as live:
        frames = list(live.frames())
    assert len(frames) == 10
    assert all(128 <= int(frame.pixels.float().mean()) <= 132 for frame in frames)


# Other streams


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp", "rtmp", "tcp"])
def test_nobody_listens(scheme: str) -> None:
    with pytest.raises(DecodeError, match="can't be reached: nothing answers there") as raised:
        open_live(f"{scheme}://u:secret@127.0.0.1:{free_port()}/x", timeout=5)
    one_line(raised, "secret")


@pytest.mark.parametrize("scheme", ["udp", "srt", "rtp"])
def test_nobody_sends(scheme: str) -> None:
    with pytest.raises(DecodeError, match=r"gave no answer within 0\.7 s|reached") as raised:
        open_live(f"{scheme}://127.0.0.1:{free_port(socket.SOCK_DGRAM)}", timeout=0.7)
    one_line(raised)


def test_rtsp(clip, numbers) -> None:
    with RtspServer(clip("cam.h264")) as server, open_live(server.url) as live:
        assert live.info is not None
        assert (live.info.width, live.info.codec, is_endless(live.info)) == (64, "h264", True)
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)
    assert server.methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]


def test_rtsp_that_falls_silent(clip) -> None:
    with RtspServer(clip("cam.h264"), silent=True) as server:
        live = open_live(server.url, timeout=2.0)
        child = child_of(live)
        frames = live.frames()
        # Of 60: ffmpeg's parser keeps one until it sees the next; our settings keep none.
        assert len(list(itertools.islice(frames, 59))) == 59
        with pytest.raises(DecodeError, match=r"within 2 s") as raised:
            list(frames)
    one_line(raised)
    assert child.returncode is not None


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"DESCRIBE": "401 Unauthorized"}, r"refuses access \(401\)"),
        ({"DESCRIBE": "404 Not Found"}, r"does not exist on that server \(404\)"),
        ({"SETUP": "461 Unsupported Transport"}, "answers 461"),
    ],
)
def test_rtsp_that_refuses(clip, answers: dict[str, str], says: str) -> None:
    with (
        RtspServer(clip("cam.h264"), answers=answers) as server,
        pytest.raises(DecodeError, match=says) as raised,
    ):
        open_live(server.url.replace("//", "//u:secret@"), timeout=5)
    one_line(raised, "secret")


@pytest.fixture
def flv(clip, tmp_path: Path) -> str:
    (tmp_path / "a.flv").write_bytes(clip("a.flv"))
    return str(tmp_path / "a.flv")


def test_rtmp(flv: str, numbers) -> None:
    url = f"rtmp://127.0.0.1:{free_port()}/live/x"
    with ffmpeg("-re", "-i", flv, "-c", "copy", "-f", "flv", "-listen", "1", url) as sender:
        shown, pts = contents(_when_it_listens(url, sender), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


def test_mpegts_over_tcp(flv: str, numbers) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with ffmpeg("-i", flv, "-c", "copy", "-f", "mpegts", f"{url}?listen=1") as sender:
        shown, _ = contents(_when_it_listens(url, sender), numbers)
    assert shown == list(range(60))


def _when_it_listens(url: str, sender: subprocess.Popen[bytes]) -> list[Frames]:
    """A sender that takes one caller can't be asked before whether it listens."""
    for _ in range(50):
        try:
            with open_live(url) as live:
                return list(live.frames())
        except DecodeError as error:
            if "nothing answers" not in str(error) or sender.poll() is not None:
                raise
            time.sleep(0.1)
    raise AssertionError(f"{url} never listened")


@pytest.mark.parametrize("form", ["udp", "rtp"])
def test_mpegts_over_udp(flv: str, form: str) -> None:
    url = f"{form}://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    mux = "mpegts" if form == "udp" else "rtp_mpegts"
    loop = ("-stream_loop", "-1", "-re", "-i", flv, "-c", "copy", "-f", mux)
    with ffmpeg(*loop, f"{url}?pkt_size=1316"), open_live(url, timeout=10) as live:
        pts = [float(f.pts_seconds[0]) for f in itertools.islice(live.frames(), 20)]
    assert (np.diff(pts) > 0).all()


def test_no_such_camera() -> None:
    with pytest.raises(DecodeError, match="cam:250 is not there") as raised:
        open_live("cam:250")
    one_line(raised)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("Failed to resolve hostname cam.invalid: Name or service not known", "unknown host, cam."),
        ("Connection to tcp://10.0.0.1:80 failed: Connection timed out", "no answer within 3 s"),
        ("Connection to tcp://10.0.0.1:80 failed: No route to host", "this network"),
        ("Cannot open video device /dev/video0: Permission denied", "join the group"),
        ("ioctl(VIDIOC_STREAMON): Device or resource busy", "in use by another program"),
        ("Something new under the sun", "ffmpeg says 'Something new under the sun'"),
        ("Odd \x1b[31manswer of rtsp://u:secret@h/x", "'Odd [31manswer of rtsp://***@h/x'"),
    ],
)
def test_what_ffmpeg_says_and_what_it_means(said: str, means: str) -> None:
    log = LiveLog()
    log.add(f"[tcp @ 0x55d0] [error] {said}")
    log.add("[in#0 @ 0x55d0] [error] Error opening input: Input/output error")
    log.add("[fatal] Error opening input files: Input/output error")
    assert means in log.complaint("cam", Kind.RTSP, 3.0)
