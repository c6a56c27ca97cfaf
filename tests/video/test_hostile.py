"""Bad input: right frames or one clear line, in time, in little memory, and from no other file."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from flamvid import video
from flamvid.errors import DecodeError, DecoderLost, FlamvidError
from flamvid.video import isolate
from flamvid.video.decode import open_video
from flamvid.video.verify import verify

SECRET = "root:x:0:0:a line that must never be seen"
LONGEST = 20.0  # seconds, on a machine that is busy with other things


def outcome(path: Path | str) -> str | int:
    """What a user meets: the one line of the error, or the number of frames that came."""
    began = time.monotonic()
    try:
        with video.open(path, size=(32, 32), timeout=LONGEST) as source:
            n = len(source.pts)
            frames = source.read(sorted({0, n // 2, n - 1}))
            assert np.isfinite(frames.pts_seconds).all()
            return n
    except FlamvidError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 600
        assert SECRET not in line
        assert "Traceback" not in line
        return line
    finally:
        assert time.monotonic() - began < 3 * LONGEST


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


BOX = struct.Struct(">I4s")

FILES: dict[str, tuple[str, bytes | str, str]] = {
    "no bytes": ("a.mp4", b"", "is empty"),
    "text": ("a.mp4", "To be, or not to be. " * 50, "no video"),
    "three letters": ("a.mp4", "abc", "is no video"),
    "one letter": ("a.mov", "a", "is no video"),
    "a short line": ("a.mp4", "hello, world\n", "is no video"),
    "a web page": ("a.webm", "<!DOCTYPE html><html><body>404</body></html>", "no video"),
    "an archive": ("a.mkv", b"PK\x03\x04" + bytes(500), "no video"),
    "a program": ("a.avi", b"\x7fELF\x02\x01\x01" + bytes(500), "no video"),
    "zeros": ("a.mp4", bytes(5000), "no video"),
    "noise": ("a.ts", random.Random(0).randbytes(50_000), ""),
    "subtitles": ("a.srt", "1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 9, "no video"),
    "an mp4 without an index": (
        "a.mp4",
        BOX.pack(16, b"ftyp") + b"isom\0\0\2\0" + BOX.pack(1008, b"mdat") + bytes(1000),
        "no index",
    ),
    "a header of 100,000 x 100,000": (
        "a.y4m",
        b"YUV4MPEG2 W100000 H100000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000),
        "",
    ),
    "a header of 16,000 x 16,000": (
        "a.y4m",
        b"YUV4MPEG2 W16000 H16000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000),
        "16000x16000",
    ),
    "a playlist of a local file": (
        "a.m3u8",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "/etc/passwd",
    ),
    "a playlist that climbs": (
        "a.m3u8",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n../secret.txt\n#EXT-X-ENDLIST\n",
        "only name files in its own folder",
    ),
    "a playlist of an address": (
        "a.mp4",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n",
        "only name files in its own folder",
    ),
    "a playlist with a key elsewhere": (
        "a.m3u8",
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF:9,\na.ts\n',
        "only name files in its own folder",
    ),
    "a playlist of itself": (
        "a.m3u8",
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na.m3u8\n#EXT-X-ENDLIST\n",
        "",
    ),
    "a list of files": ("a.mp4", "ffconcat version 1.0\nfile /etc/passwd\n", "ffconcat list"),
    "a DASH manifest": ("a.mpd", '<?xml version="1.0"?><MPD></MPD>', "XML manifest"),
    "a session description": ("a.sdp", "v=0\r\nm=video 5004 RTP/AVP 96\r\n", "SDP"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_video_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    name, content, says = FILES[kind]
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "inner").mkdir()
    said = outcome(write(tmp_path / "inner" / name, content))
    assert isinstance(said, str)
    assert name in said
    assert says in said


def test_a_playlist_whose_segment_is_a_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.ts").symlink_to(tmp_path / "secret.txt")
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.ts\n#EXT-X-ENDLIST\n"
    said = outcome(write(tmp_path / "inner" / "a.m3u8", text))
    assert "only name files in its own folder" in str(said)


@pytest.mark.parametrize("kind", ["a folder without frames", "a pipe", "a device", "a loop"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mp4"
    if kind == "a folder without frames":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a loop":
        path.symlink_to(path)
    else:
        path = Path("/dev/zero")
    assert isinstance(outcome(path), str)


@pytest.mark.parametrize(
    "name", ["a b c.mp4", "größe 影片.mp4", "-y.mp4", "line\nbreak.mp4", "%03d.mp4", "a'b;c$.mp4"]
)
def test_odd_names_are_names(make_clip: Callable[..., Path], tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, make_clip("plain.mp4", frames=10).read_bytes())
    assert outcome(path) == 10
    forward = path.with_name(name.replace(".mp4", ".ts"))
    forward.write_bytes(make_clip("plain.ts", frames=10).read_bytes())
    assert outcome(forward) == 10


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.webm", "a.gif"])
def test_truncated(make_clip: Callable[..., Path], tmp_path: Path, name: str, share: float) -> None:
    codec = {"a.webm": ("-c:v", "libvpx"), "a.gif": ("-c:v", "gif", "-pix_fmt", "rgb8")}
    whole = make_clip(name, *codec.get(name, ())).read_bytes()
    said = outcome(write(tmp_path / name, whole[: int(len(whole) * share)]))
    # A stream may end anywhere; a file that says how long it is, is cut.
    if name in ("a.mp4", "a.mkv", "a.avi", "a.webm"):
        assert "truncated" in str(said) or "is no video" in str(said)


def _retimed(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """An MP4 with one 32-bit number of a box replaced."""
    at = data.index(box) + 4 + offset
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


@pytest.mark.parametrize(
    ("box", "offset", "value"),
    [
        (b"stts", 8, 100_000),  # more frames than there are
        (b"stsz", 8, 4_000_000_000),
        (b"stsz", 8, 600),
        (b"stco", 4, 2_000_000_000),
        (b"mvhd", 16, 0xFFFFFFFF),  # a duration without end
        (b"mdhd", 16, 0xFFFFFFFF),
        (b"mdhd", 12, 0),  # no time scale
        (b"stsd", 36, 0xFFFFFFFF),  # width and height
    ],
)
def test_an_index_that_lies(
    make_clip: Callable[..., Path], tmp_path: Path, box: bytes, offset: int, value: int
) -> None:
    whole = make_clip("whole.mp4", frames=30).read_bytes()
    path = write(tmp_path / "lie.mp4", _retimed(whole, box, offset, value))
    said = outcome(path)
    # What still opens shows what ffmpeg shows.
    if isinstance(said, int):
        assert verify(path, timeout=LONGEST).differences == ()


@pytest.mark.slow
def test_two_hundred_files_with_flipped_bits(
    make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    rng = random.Random(11)
    whole = [make_clip(f"w.{kind}", frames=20).read_bytes() for kind in ("mp4", "mkv", "ts", "avi")]
    opened = 0
    for trial in range(200):
        data = bytearray(whole[trial % 4])
        head = trial % 8 < 4
        for _ in range(rng.choice((1, 8, 64))):
            data[rng.randrange(min(len(data), 800) if head else len(data))] ^= 1 << rng.randrange(8)
        said = outcome(
            write(tmp_path / f"flip{trial}.{('mp4', 'mkv', 'ts', 'avi')[trial % 4]}", data)
        )
        opened += isinstance(said, int)
    assert 20 < opened < 200  # some damage is harmless, some is not: both ways were walked


def test_a_decoder_that_hangs_is_stopped(
    make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    with video.open(make_clip("hang.mp4"), timeout=1.0) as source:
        assert source._child is not None
        process = source._child._process
        os.kill(process.pid, signal.SIGSTOP)  # as good as a deadlock
        with pytest.raises(DecoderLost, match=r"hang\.mp4.*--decode-timeout"):
            source.read([0])
        assert process.poll() is not None
        assert source.read([3]).pixels.shape[0] == 1  # another child takes its place


def test_a_decoder_that_crashes_is_one_line(make_clip: Callable[..., Path]) -> None:
    import signal

    with video.open(make_clip("crash.mp4")) as source:
        os.kill(source._child._process.pid, signal.SIGSEGV)
        source._child._process.wait()
        source._child._process.poll = lambda: None  # it died while it was asked
        with pytest.raises(DecoderLost, match=r"crash\.mp4.*SIGSEGV"):
            source.read([0])


def test_a_decoder_without_memory_is_one_line(
    make_clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip("large.mp4", size="1920x1080", frames=5)
    monkeypatch.setenv("FLAMVID_DECODE_MEMORY", str(500 << 20))
    monkeypatch.setattr(isolate, "_idle", [])
    with pytest.raises(DecodeError, match=r"large\.mp4"), open_video(clip, (9000, 9000)) as source:
        source.read(range(5))


def test_an_ffmpeg_that_is_late_is_stopped(make_clip: Callable[..., Path]) -> None:
    clip = make_clip("long.ts", frames=75, size="1280x720")
    with pytest.raises(DecoderLost, match=r"long\.ts.*--decode-timeout"):
        open_video(clip, None, timeout=0.05)


def test_children_end_with_their_files(make_clip: Callable[..., Path]) -> None:
    sources = [video.open(make_clip(f"{i}.mp4", frames=5)) for i in range(6)]
    processes = [source._child._process for source in sources]
    assert all(p.poll() is None for p in processes)
    del sources  # not closed: forgotten
    import gc

    gc.collect()
    alive = sum(p.poll() is None for p in processes)
    assert alive <= 4  # some wait for the next file


def test_the_ffmpeg_that_is_run_is_ours() -> None:
    from flamvid.video.probe import ffmpeg_exe

    assert ffmpeg_exe() == imageio_ffmpeg.get_ffmpeg_exe()
