"""Live reading of standard input, and what its frames are."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamvid.errors import DecodeError, SourceError
from flamvid.video.live import open_live
from flamvid.video.sample import Fps
from tests.video.live_tools import (
    VFR,
    contents,
    ffmpeg,
    one_line,
    piped,
)


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
