"""Colour and geometry: what is shown is what ffmpeg shows, or what the picture was made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from flamvid import video
from flamvid.errors import DecodeError
from flamvid.video import policy

RunFfmpeg = Callable[..., None]


def shown_by_ffmpeg(path: Path, height: int, width: int, filters: str = "null") -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-"], capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


def bars(run_ffmpeg: RunFfmpeg, path: Path, *options: str, size: str = "96x64") -> Path:
    run_ffmpeg("-f", "lavfi", "-i", f"smptehdbars=s={size}:r=10:d=1", *options, str(path))
    return path


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
@pytest.mark.parametrize("full", ["tv", "pc"])
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_matrix_and_range(
    run_ffmpeg: RunFfmpeg, tmp_path: Path, matrix: str, full: str, name: str
) -> None:
    options = ["-vf", f"scale=out_color_matrix={matrix}:out_range={full}", "-pix_fmt", "yuv444p"]
    options += ["-colorspace", matrix, "-color_range", full, "-c:v", "libx264", "-qp", "0"]
    path = tmp_path / name
    graph = "color=0x20A060:s=96x64:r=10:d=1,format=gbrp"
    run_ffmpeg("-f", "lavfi", "-i", graph, *options, str(path))
    with video.open(path) as source:
        pixels = source.read([0, 5]).pixels.numpy()
    np.testing.assert_array_equal(pixels, shown_by_ffmpeg(path, 64, 96)[[0, 5]])
    # As it was drawn: a wrong matrix or range is off by seven levels and more.
    assert np.abs(pixels[0][:, 10, 48].astype(int) - [0x20, 0xA0, 0x60]).max() <= 3


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_ten_bits(run_ffmpeg: RunFfmpeg, tmp_path: Path, codec: str) -> None:
    path = bars(run_ffmpeg, tmp_path / "a.mp4", "-c:v", codec, "-pix_fmt", "yuv420p10le")
    with video.open(path) as source:
        pixels = source.read([3]).pixels.numpy()
    np.testing.assert_array_equal(pixels, shown_by_ffmpeg(path, 64, 96)[[3]])


@pytest.mark.parametrize(("transfer", "encoded"), [("smpte2084", 0.58), ("arib-std-b67", 0.75)])
def test_hdr_is_tone_mapped(
    run_ffmpeg: RunFfmpeg, tmp_path: Path, transfer: str, encoded: float
) -> None:
    # White as bright as paper: 203 nits by BT.2408, of which players make nearly white.
    level = round(64 + encoded * 876)
    graph = f"color=black:s=64x64:r=10:d=0.5,format=yuv420p10le,geq=lum={level}:cb=512:cr=512"
    colours = ["-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_trc", transfer]
    path = tmp_path / "hdr.mp4"
    x265 = f"log-level=none:transfer={transfer}:colorprim=bt2020:colormatrix=bt2020nc"
    options = ["-c:v", "libx265", "-x265-params", x265, *colours]
    run_ffmpeg("-f", "lavfi", "-i", graph, *options, str(path))
    with video.open(path) as source:
        assert source.info.transfer == transfer
        assert "tone-mapped" in source.reason
        pixels = source.read([0]).pixels.float()
    assert pixels.std() < 2  # grey stays grey
    assert 150 < pixels.mean() < 252


def test_interlaced_lines_are_woven_apart(run_ffmpeg: RunFfmpeg, tmp_path: Path) -> None:
    # A white bar that moves 8 pixels from field to field: woven together it has teeth.
    path = tmp_path / "a.mp4"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "color=black:s=128x96:r=50:d=1"),
        *(
            "-vf",
            "geq=lum='if(between(mod(X-8*N\\,128)\\,0\\,15)\\,235\\,16)':cb=128:cr=128,interlace",
        ),
        *("-c:v", "libx264", "-x264opts", "tff=1", "-pix_fmt", "yuv420p", "-crf", "5", str(path)),
    )
    with video.open(path) as source:
        assert source.info.interlaced
        ours = source.read([8]).pixels[0].float().mean(0)
    teeth = (ours[10:-11] - ours[11:-10]).abs().mean()
    woven = shown_by_ffmpeg(path, 96, 128)[8].astype(np.float32).mean(0)
    assert teeth < 0.5 * np.abs(woven[10:-11] - woven[11:-10]).mean()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_pixels_that_are_not_square(run_ffmpeg: RunFfmpeg, tmp_path: Path, name: str) -> None:
    path = bars(run_ffmpeg, tmp_path / name, "-vf", "setsar=4/3", "-c:v", "libx264")
    with video.open(path) as source:
        assert (source.info.width, source.info.height) == (128, 64)
        assert source.read([2]).pixels.shape == (1, 3, 64, 128)
    with video.open(path, size=(20, 30)) as source:
        assert source.read([2]).pixels.shape == (1, 3, 20, 30)


@pytest.mark.parametrize("codec", ["png", "qtrle"])
def test_transparency_lies_on_white(run_ffmpeg: RunFfmpeg, tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mov"
    graph = "color=red:s=64x32:r=5:d=1,format=argb,geq=r=255:g=0:b=0:a='if(lt(X,32),0,255)'"
    run_ffmpeg("-f", "lavfi", "-i", graph, "-c:v", codec, str(path))
    with video.open(path) as source:
        pixels = source.read([2]).pixels[0]
    assert (pixels[:, :, :32] == 255).all()
    assert pixels[:, 5, 40].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", ["97x65", "2x2", "33x8"])
def test_odd_sizes(run_ffmpeg: RunFfmpeg, tmp_path: Path, size: str) -> None:
    width, height = map(int, size.split("x"))
    path = bars(run_ffmpeg, tmp_path / "a.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv420p", size=size)
    with video.open(path) as source:
        pixels = source.read([0, 9]).pixels.numpy()
    np.testing.assert_array_equal(pixels, shown_by_ffmpeg(path, height, width)[[0, 9]])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_a_video_of_one_frame(run_ffmpeg: RunFfmpeg, tmp_path: Path, name: str) -> None:
    path = bars(run_ffmpeg, tmp_path / name, "-frames:v", "1", "-pix_fmt", "yuv420p")
    with video.open(path) as source:
        assert source.pts.tolist() == [0.0]
        assert 0 <= source.durations[0] < 1
        assert source.read([0, 0]).pixels.shape == (2, 3, 64, 96)


def test_above_8k_is_refused_before_it_is_decoded(
    run_ffmpeg: RunFfmpeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    run_ffmpeg(
        *("-f", "lavfi", "-i", "color=black:s=8192x4400:r=5:d=0.2", "-c:v", "ffv1", str(path)),
    )
    with pytest.raises(DecodeError, match="8192x4400"):
        video.open(path)
    policy.check_size("8K", 7680, 4320)
    policy.check_size("8K upright", 4320, 7680)
