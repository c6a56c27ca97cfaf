"""Animated pictures against what ffmpeg decodes and when it shows it."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from flamvid.errors import DecodeError, SourceError
from flamvid.video.animation import is_animated, open_animation, open_image

DELAYS = [0, 10, 20, 70, 1000, 330]  # milliseconds


def ffmpeg_times(path: Path) -> list[float]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    command += ["-vf", "showinfo", "-fps_mode", "passthrough", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [float(t) for t in re.findall(r" n: *\d+ pts: *\S+ +pts_time:(\S+)", said)]


def ffmpeg_frames(path: Path, height: int, width: int) -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


def gif(path: Path, *delays: int | None, where: tuple[int, int] = (0, 0)) -> Path:
    """A GIF of one black pixel on 8x6, with these delays (hundredths; None: no word about it)."""
    out = b"GIF89a" + struct.pack("<HHBBB", 8, 6, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    for delay in delays:
        if delay is not None:
            out += b"!\xf9\x04" + struct.pack("<BHB", 0, delay, 0) + b"\0"
        out += b"," + struct.pack("<4HB", *where, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    path.write_bytes(out + b";")
    return path


def save(path: Path, pictures: list[Image.Image], **how: object) -> Path:
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **how)
    return path


def colors(count: int = 6, size: tuple[int, int] = (32, 24)) -> list[Image.Image]:
    return [Image.new("RGB", size, (i * 40, 255 - i * 40, 100)) for i in range(count)]


@pytest.mark.parametrize(
    ("source", "name", "options"),
    [
        ("testsrc2=s=64x48:r=10:d=2", "a.gif", ()),  # frames are the parts that changed
        ("mandelbrot=s=64x48:r=25", "b.gif", ("-frames:v", "20")),
        ("testsrc2=s=64x48:r=10:d=2", "a.webp", ("-lossless", "1")),
        ("testsrc2=s=64x48:r=10:d=2", "a.apng", ("-plays", "0")),
    ],
)
def test_frames_and_times_are_those_of_ffmpeg(
    source: str, name: str, options: tuple[str, ...], run_ffmpeg, tmp_path: Path
) -> None:
    path = tmp_path / name
    run_ffmpeg("-f", "lavfi", "-i", source, *options, str(path))
    assert is_animated(path)
    with open_animation(path, None) as animation:
        expected = ffmpeg_frames(path, 48, 64)
        np.testing.assert_allclose(animation.pts, ffmpeg_times(path), atol=1e-9)
        assert animation.info.frames == len(expected)
        for at in (range(len(expected)), [7, 3, 3, 15], [0], [len(expected) - 1, 1]):
            np.testing.assert_array_equal(animation.read(at).pixels.numpy(), expected[at])


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_frames_without_a_sensible_delay_are_shown_as_by_ffmpeg(kind: str, tmp_path: Path) -> None:
    how = {"lossless": True} if kind == "webp" else {}
    path = save(tmp_path / f"a.{kind}", colors(), duration=DELAYS, **how)
    with open_animation(path, None) as animation:
        np.testing.assert_allclose(animation.pts, ffmpeg_times(path), atol=1e-5)
        assert (animation.durations > 0).all()
        assert animation.info.duration == pytest.approx(animation.durations.sum())


@pytest.mark.parametrize(
    "delays", [(5, 0, 7), (None, 5, None, 7, None), (2, 1, None, 0, None), (0, 0, 0)]
)
def test_delays_of_a_gif(delays: tuple[int | None, ...], tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", *delays)
    np.testing.assert_allclose(open_animation(path, None).pts, ffmpeg_times(path), atol=1e-9)


def test_avif(tmp_path: Path) -> None:
    path = save(tmp_path / "a.avif", colors(), duration=[40, 80, 200, 40, 40, 40])
    assert is_animated(path)
    with open_animation(path, (12, 16)) as animation:
        np.testing.assert_allclose(animation.pts, [0, 0.04, 0.12, 0.32, 0.36, 0.40])
        found = animation.read([4, 1, 1]).pixels
    assert found.shape == (3, 3, 12, 16)
    red = found[:, 0].float().mean((1, 2)).numpy()
    np.testing.assert_allclose(red, [160, 40, 40], atol=3)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    """A dot that moves over nothing: what it leaves is transparent again."""
    pictures = []
    for x in range(4):
        picture = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
        picture.putpixel((2 * x, 1), (255, 0, 0, 255))
        pictures.append(picture)
    expected = torch.full((4, 3, 6, 8), 255, dtype=torch.uint8)
    for x in range(4):
        expected[x, 1:, 1, 2 * x] = 0
    for kind, how in (
        ("gif", {"disposal": 2}),
        ("png", {"disposal": 1}),
        ("webp", {"lossless": 1}),
    ):
        path = save(tmp_path / f"a.{kind}", pictures, duration=50, **how)
        with open_animation(path, None) as animation:
            assert torch.equal(animation.read(range(4)).pixels, expected)


def test_a_png_with_a_picture_for_those_who_cannot_animate(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", colors(), duration=100, default_image=True)
    with open_animation(path, None) as animation:
        assert len(animation.pts) == 5
        assert animation.read([0, 4, 1]).pixels[:, 0, 0, 0].tolist() == [40, 200, 80]


def test_one_frame_is_a_still(tmp_path: Path) -> None:
    for kind in ("gif", "webp", "png", "avif", "tiff", "jpg"):
        path = tmp_path / f"one.{kind}"
        colors(1)[0].save(path)
        assert not is_animated(path)
        with open_image(path, None) as source:
            assert source.durations.tolist() == [0]
    pages = save(tmp_path / "pages.tiff", colors(2))
    assert not is_animated(pages)
    album = save(tmp_path / "album.jpg", colors(2), format="MPO")  # a phone's: photo and preview
    assert not is_animated(album)
    assert len(open_image(save(tmp_path / "two.png", colors(2)), None).pts) == 2


def test_what_is_no_picture_is_not_animated(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_text("GIF89 is a format")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    for name in ("a.gif", "b.gif", "missing.gif"):
        assert not is_animated(tmp_path / name)
        with pytest.raises(SourceError, match=name):
            open_image(tmp_path / name, None)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_cut_off(kind: str, tmp_path: Path) -> None:
    whole = save(tmp_path / f"whole.{kind}", colors(), duration=100).read_bytes()
    path = tmp_path / f"cut.{kind}"
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(DecodeError, match=rf"cut\.{kind}") as raised:
            open_image(path, None).read([0])
        assert "\n" not in str(raised.value)


def test_a_damaged_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 24, 32, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", [Image.fromarray(n) for n in noise], duration=100)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"fdAT") + 20
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    with open_animation(path, None) as animation:
        with pytest.raises(DecodeError, match=r"a\.png can't be decoded"):
            animation.read([3])
        np.testing.assert_array_equal(animation.read([1]).pixels[0].permute(1, 2, 0), noise[1])


def test_a_frame_beyond_the_screen_may_not_grow_it_without_end(tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", 5, 5, where=(60_000, 60_000))
    with pytest.raises(DecodeError, match=r"60001x60001.*8K"):
        open_animation(path, None)
    assert not is_animated(path)
