"""What goes wrong while a stream is watched, with the real command: each time it goes on."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end import slow_live
from tests.end_to_end.live_command import PATIENCE, LiveCommand
from tests.tiny import make_model
from tests.video.live_tools import camera
from tests.video.media_server import MediaServer, Proxy, free_port, paced
from tests.video.numbered import ffmpeg

WATCHDOG = 2.0  # seconds
BUSY = 8.0  # seconds that a busy machine and the waits between attempts may add
TOLD = ("--fps=4", "--every=500ms", f"--timeout={WATCHDOG:g}s")

Start = Callable[..., LiveCommand]
Clip = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """clip("a.ts", *output options, seconds=4, size="64x48")"""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str, *options: str, seconds: float = 4, size: str = "64x48") -> Path:
        picture = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d={seconds}")
        if not (folder / name).exists():
            ffmpeg(*picture, "-pix_fmt", "yuv420p", "-g", "25", *options, folder / name)
        return folder / name

    return make


@pytest.fixture
def cam(clip: Clip) -> Path:
    return clip("cam.h264", "-bf", "0", "-x264-params", "slices=1:sliced-threads=0")


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Start:
    def run(source: str | Path, *options: str, **how: Any) -> LiveCommand:
        return LiveCommand(tmp_path, model, str(source), *options, **how)

    return run


# The network


@pytest.mark.slow
def test_a_server_killed_a_network_cut_and_one_that_falls_silent(start: Start, cam: Path) -> None:
    port = free_port()
    with (
        camera(cam, port) as (server, _),
        Proxy(port) as proxy,
        start(f"rtsp://127.0.0.1:{proxy.port}/cam", *TOLD) as live,
    ):
        live.until_captions()
        server.kill()
        server.wait()
        time.sleep(0.5)
        with camera(cam, port):
            assert live.until_gap() < WATCHDOG + BUSY
            for how in ("cut", "hold"):
                proxy.set(how)
                time.sleep(WATCHDOG + 1)
                proxy.set("forward")
                assert live.until_gap() < WATCHDOG + BUSY
            # The clock of the stream goes as the one on the wall does, whatever was lost.
            first, *_, last = live.cues
            passed = last["wall"] - first["wall"]
            assert last["end"] - first["end"] == pytest.approx(passed, abs=3.0)
            gaps = live.gaps
            assert len(gaps) == 3
            assert all(gap["end"] - gap["start"] > 0.5 for gap in gaps)
            assert all(gap["why"] for gap in gaps)

            proxy.set("cut")  # nor does it hang when it is told to end while there is nothing
            time.sleep(0.5)
            assert live.end(signal.SIGINT) == 130
            assert live.took < BUSY


@pytest.mark.slow
def test_another_codec_and_resolution_in_the_middle(start: Start, clip: Clip) -> None:
    data = ("-b:v", "2M", "-maxrate", "2M", "-minrate", "2M", "-bufsize", "1M")
    h264 = clip("h264.ts", *data, "-x264-params", "nal-hrd=cbr").read_bytes()
    mpeg2 = clip("mpeg2.ts", "-c:v", "mpeg2video", *data, size="160x120").read_bytes()
    answers = itertools.chain([h264 + mpeg2 * 3], itertools.repeat(mpeg2 * 3))

    def answer(request: BaseHTTPRequestHandler) -> None:
        paced(request, next(answers), rate=len(h264) / 2)

    with MediaServer() as server:
        server.routes["/live.ts"] = answer
        with start(server.url("/live.ts"), *TOLD, "--timeout=5s") as live:
            live.until_gap()
            live.until_captions()
            assert live.end(signal.SIGTERM) == 130


def test_an_end_while_nobody_answers(start: Start) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # takes callers and says nothing
        start(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/cam") as live,
    ):
        silent.settimeout(PATIENCE)
        caller, _ = silent.accept()
        began = time.monotonic()
        live.process.send_signal(signal.SIGINT)
        out, err = live.process.communicate(timeout=PATIENCE)
        caller.close()
        assert time.monotonic() - began < BUSY
        assert (live.process.returncode, out) == (130, "")
        assert err.splitlines()[1:] == ["flamvid: interrupted"]


# The data


def piped(start: Start, *parts: bytes) -> LiveCommand:
    """Watches these bytes through a pipe, up to their end."""
    read, write = os.pipe()
    live = start("-", *TOLD, stdin=read)
    os.close(read)

    def feed() -> None:
        with open(write, "wb") as pipe:
            for part in parts:
                pipe.write(part)

    threading.Thread(target=feed, daemon=True).start()
    return live


def test_ten_seconds_of_garbage(start: Start, clip: Clip) -> None:
    data = clip("a.ts").read_bytes()
    noise = np.random.default_rng(0).bytes(len(data) * 10 // 4)
    with piped(start, data, noise, data) as live:
        assert live.end() == 0
        kinds = [cue["kind"] for cue in live.cues]
        assert "gap" in kinds
        assert kinds[0] == kinds[-1] == "caption"
        assert live.cues[-1]["seen"] > 24  # most of the second half, too


def test_a_clock_that_is_set_back(start: Start, clip: Clip) -> None:
    late = clip("late.ts", "-output_ts_offset", "30").read_bytes()
    with piped(start, late, clip("a.ts").read_bytes()) as live:
        assert live.end() == 0
        (gap,) = live.gaps
        assert "clock" in gap["why"]
        assert live.cues[-1]["end"] == pytest.approx(8.0, abs=0.6)


def test_the_wrap_after_26_hours(start: Start, clip: Clip) -> None:
    wrap = clip("wrap.ts", "-output_ts_offset", f"{2**33 / 90000 - 2:.3f}").read_bytes()
    with piped(start, wrap) as live:
        assert live.end() == 0
        assert [cue["end"] for cue in live.cues] == pytest.approx(np.arange(1, 9) / 2)


# Who watches, and who reads that


def test_a_consumer_ten_times_too_slow(start: Start, cam: Path) -> None:
    fps = 10 / slow_live.LONGER  # ten frames come while one is looked at, however fast we are
    options = (f"--fps={fps:g}", "--every=10ms", "--latency-budget=100ms", "--queue=4", "--beams=3")
    with (
        camera(cam) as (_, url),
        start(url, *options, program=slow_live.__name__) as live,
    ):
        live.until(lambda cues: len(cues) > 20)
        time.sleep(4.0)
        assert live.end(signal.SIGINT) == 130
        cues = live.cues
    last = cues[-1]
    assert last["dropped"] > 4 * last["seen"]
    assert last["shed"]["frames"] > 0
    assert any(cue["shed"]["greedy"] for cue in cues)
    assert any(cue["shed"]["latents"] for cue in cues)
    # It lags no further behind, and does not run late by more and more.
    behind = [cue["wall"] - cue["pts"] for cue in cues]
    assert behind[-1] - behind[5] < 1.0


def test_a_disk_that_is_full_for_a_while(start: Start, cam: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with camera(cam) as (_, url), start(url, *TOLD, f"--state={state}") as live:
        live.until_captions(3)
        limit = live.srt.stat().st_size + 20  # half a cue still fits into the smallest file
        set_limit(live, limit)
        time.sleep(1.0)
        files = (live.jsonl, live.vtt, live.srt, state)
        full = [path.read_bytes() for path in files]
        time.sleep(1.5)
        assert [path.read_bytes() for path in files] == full
        live.check_files()
        set_limit(live, resource.RLIM_INFINITY)
        live.until_captions()
        assert live.end(signal.SIGTERM) == 130
        assert all(path.read_bytes() != before for path, before in zip(files, full, strict=True))
    assert live.log.count("a cue is lost (File too large)") == 3  # said once for each file
    assert "can't write the state" in live.log


def set_limit(live: LiveCommand, size: int) -> None:
    """How large its files may become: the quota of a disk."""
    limits = (size, resource.RLIM_INFINITY)
    resource.prlimit(live.process.pid, resource.RLIMIT_FSIZE, limits)


def test_killed_and_resumed(start: Start, cam: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with camera(cam) as (_, url):
        with start(url, *TOLD, f"--state={state}") as live:
            live.until_captions(3)
            live.until(lambda cues: state.stat().st_mtime > cues[-1]["wall"])
            assert live.end(signal.SIGKILL) == -signal.SIGKILL
            before, told = live.cues, live.srt.read_bytes()
        with start(url, *TOLD, f"--state={state}") as live:
            live.until_captions()
            assert live.end(signal.SIGTERM) == 130
            after = live.cues
    assert after[: len(before)] == before
    assert live.srt.read_bytes().startswith(told)
    gap = after[len(before)]
    assert gap["kind"] == "gap"
    assert gap["start"] == pytest.approx(before[-1]["end"], abs=0.6)
    passed = after[-1]["wall"] - before[-1]["wall"]
    assert after[-1]["end"] - before[-1]["end"] == pytest.approx(passed, abs=2.0)
    assert after[-1]["seen"] > before[-1]["seen"] + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_cue_is_written(start: Start, cam: Path, number: int) -> None:
    with camera(cam) as (_, url), start(url, "--fps=4", "--every=3s") as live:
        live.until(lambda cues: bool(cues))
        time.sleep(1.5)
        assert live.end(number) == 130
    first, last = live.cues
    assert (first["why"], last["why"]) == ("every", "end")
    assert last["start"] == first["end"] < last["end"]
