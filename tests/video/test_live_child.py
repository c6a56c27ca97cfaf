"""The child behind a live source: bounded, and gone when it should be."""

from __future__ import annotations

import gc
import io
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flamvid.errors import DecodeError, DecoderLost, InputError
from flamvid.video.live import LiveSource, open_live
from tests.video.live_tools import (
    child_of,
    gone,
    one_line,
    piped,
)


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
