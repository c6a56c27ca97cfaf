"""Every container, GOP, frame order, rate and start: the frame we give is the one ffmpeg shows.

Frames carry their number as eight bars, one bit each. Truth comes from ffmpeg's command line, which
lists what it shows and when.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flamvid import video
from flamvid.video.sample import frame_at
from tests.video.numbered import BARS, FRAMES, HEIGHT, VARIABLE, WIDTH, bars, ffmpeg, truth

CONTAINERS = ("mp4", "mkv", "webm", "avi", "ts", "m2ts", "m3u8", "gif")
STARTS = ("start0", "start5", "cut")


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A stream of each kind, encoded once; containers copy it."""
    folder, made = tmp_path_factory.mktemp("streams"), dict[tuple[object, ...], Path]()

    def encoded(codec: str, gop: int, b_frames: int, rate: str) -> Path:
        key = codec, gop, b_frames, rate
        if key not in made:
            made[key] = folder / f"{codec}-{gop}-{b_frames}-{rate}.mkv"
            graph = f"color=s={WIDTH}x{HEIGHT}:r=25:d={FRAMES / 25},format=yuv420p,{BARS}"
            options = {
                "h264": ["libx264", "-bf", b_frames, "-x264-params", "scenecut=0", "-crf", 12],
                "vp8": ["libvpx", "-b:v", "1M", "-deadline", "realtime"],
                "gif": ["gif"],
            }[codec]
            ffmpeg(
                *("-f", "lavfi", "-i", graph + (f",{VARIABLE}" if rate == "vfr" else "")),
                *("-fps_mode", "vfr", "-g", gop, "-c:v", *options),
                made[key],
            )
        return made[key]

    return encoded


def build(stream: Path, container: str, start: str, folder: Path) -> Path:
    """The stream in a container: from 0, from 5 s, or cut in the middle of a GOP without coding."""
    out = folder / f"clip.{container}"
    before = ["-ss", "0.9"] if start == "cut" else []
    after = ["-output_ts_offset", "5"] if start == "start5" else []
    if container == "m3u8":
        after += ["-hls_time", "1", "-hls_list_size", "0", "-hls_playlist_type", "vod"]
    copy = [] if container == "gif" else ["-c", "copy"]  # GIFs can't be copied out of Matroska
    if container == "avi":
        copy += ["-bsf:v", "h264_mp4toannexb"]
    ffmpeg(*before, "-i", stream, *copy, *after, out)
    return out


def cases() -> list[tuple[str, int, int, str, str]]:
    """The whole matrix, less what a container has no word for."""
    out = []
    for container in CONTAINERS:
        gops = (1,) if container == "gif" else (1, 12, 250)
        for gop in gops:
            for b_frames in (0,) if container in ("gif", "webm") or gop == 1 else (0, 3):
                for rate in ("cfr", "vfr"):
                    out += [(container, gop, b_frames, rate, start) for start in STARTS]
    return out


@pytest.mark.parametrize(("container", "gop", "b_frames", "rate", "start"), cases())
def test_the_frame_at_each_time_is_the_one_that_ffmpeg_shows(
    encode: Callable[..., Path],
    tmp_path: Path,
    container: str,
    gop: int,
    b_frames: int,
    rate: str,
    start: str,
) -> None:
    codec = {"webm": "vp8", "gif": "gif"}.get(container, "h264")
    clip = build(encode(codec, gop, b_frames, rate), container, start, tmp_path)
    pts, numbers = truth(clip)
    with video.open(clip) as source:
        # Out of order, so that every seek is tried; a time is in the middle of a frame's own.
        times = np.random.default_rng(gop).permutation((pts[:-1] + pts[1:]) / 2)[:24]
        at = frame_at(source.pts, times)
        grey = source.read(at.tolist()).pixels.float().mean(1).numpy()
        found = bars(grey)
    assert len(source.pts) == len(pts), source.reason
    np.testing.assert_allclose(source.pts, pts, atol=2e-3)
    assert found == [numbers[i] for i in frame_at(pts, times)], source.reason
