"""Stills of every kind, folders and numbered sequences; and what must be refused."""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flamvid.errors import DecodeError, FlamvidError, InputError, SourceError
from flamvid.video.pictures import (
    is_picture,
    is_sequence,
    natural,
    open_folder,
    open_picture,
    open_sequence,
    read_picture,
)

KINDS = ("png", "jpg", "webp", "avif", "bmp", "tiff", "ppm")


def save(path: Path, color: object, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Path:
    Image.new(mode, size, color).save(path)
    return path


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes, *more: bytes):
    """A PNG from its parts: those that Pillow can't write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunk(m[:4], m[4:]) for m in more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def color(path: Path) -> list[int]:
    """The one colour of a picture."""
    pixels = read_picture(path)
    assert pixels.dtype == torch.uint8
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, tmp_path: Path) -> None:
    file = save(tmp_path / f"a.{kind}", (200, 100, 50))
    with open_picture(file, None) as source:
        assert (source.info.width, source.info.height, source.info.frames) == (8, 6, 1)
        assert source.info.codec == {"jpg": "jpeg"}.get(kind, kind)
        pixels = source.read([0, 0]).pixels
    assert pixels.shape == (2, 3, 6, 8)
    assert (pixels - torch.tensor([200, 100, 50]).view(1, 3, 1, 1)).abs().max() <= 3
    with open_picture(file, (12, 10)) as source:
        assert source.read([0]).pixels.shape == (1, 3, 12, 10)
        assert source.info.width == 8


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "avif", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "corner", "turned"),
    [
        (1, (0, 0), False),
        (2, (0, -1), False),
        (3, (-1, -1), False),
        (4, (-1, 0), False),
        (5, (0, 0), True),
        (6, (0, -1), True),
        (7, (-1, -1), True),
        (8, (-1, 0), True),
    ],
)
def test_turned_upright(
    kind: str, orientation: int, corner: tuple[int, int], turned: bool, tmp_path: Path
) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}", exif=exif)
    found = read_picture(tmp_path / f"a.{kind}")
    assert found.shape == ((3, 64, 32) if turned else (3, 32, 64))
    assert found[0][corner] > 128
    assert (found[0, [0, 0, -1, -1], [0, -1, 0, -1]] > 128).sum() == 1


@pytest.mark.parametrize(
    ("name", "mode", "value", "expected"),
    [
        ("bit.png", "1", 1, [255] * 3),
        ("grey.png", "L", 77, [77] * 3),
        ("grey_clear.png", "LA", (10, 0), [255] * 3),
        ("half_clear.png", "RGBA", (0, 0, 0, 128), [127] * 3),
        ("clear.webp", "RGBA", (0, 0, 0, 0), [255] * 3),
        ("clear.avif", "RGBA", (0, 0, 0, 0), [255] * 3),
        ("print.tiff", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("print.jpg", "CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("deep.png", "I;16", 0x8000, [128] * 3),
        ("deep.tiff", "I;16", 0xFFFF, [255] * 3),
        ("float.tiff", "F", 0.5, [128] * 3),
        ("video.tiff", "YCbCr", (100, 128, 128), [100] * 3),
    ],
)
def test_every_mode(
    name: str, mode: str, value: object, expected: list[int], tmp_path: Path
) -> None:
    found = color(save(tmp_path / name, value, mode))
    assert np.abs(np.array(found) - expected).max() <= 1


def test_palettes(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 4), 3)
    picture.putpalette([9, 9, 9] * 3 + [200, 100, 50])
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "half.png", transparency=bytes([255, 255, 255, 128]))
    picture.save(tmp_path / "clear.gif", transparency=3)
    assert color(tmp_path / "plain.png") == [200, 100, 50]
    assert color(tmp_path / "half.png") == [227, 177, 152]
    assert color(tmp_path / "clear.gif") == [255] * 3


def test_pngs_of_16_bits(tmp_path: Path) -> None:
    grey = b"\0" + struct.pack(">2H", 0x8000, 0x4000)
    found = read_picture(png(tmp_path / "grey.png", 2, 1, 16, 0, grey))
    assert found[:, 0].tolist() == [[128, 64]] * 3
    clear = b"tRNS" + struct.pack(">H", 0x8000)  # one shade of grey is transparent
    found = read_picture(png(tmp_path / "clear.png", 2, 1, 16, 0, grey, clear))
    assert found[:, 0].tolist() == [[255, 64]] * 3
    rgb = b"\0" + struct.pack(">3H", 0x8000, 0, 0xFFFF)
    assert color(png(tmp_path / "rgb.png", 1, 1, 16, 2, rgb)) == [128, 0, 255]
    two_bits = read_picture(png(tmp_path / "grey2.png", 4, 1, 2, 0, b"\0\x1b"))
    assert two_bits[0, 0].tolist() == [0, 85, 170, 255]


def test_a_suffix_may_lie(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "red")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    with open_picture(tmp_path / "a.jpg", None) as source:
        assert source.info.codec == "png"
    assert is_picture(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_text("no picture")
    assert not is_picture(tmp_path / "b.png")


def test_a_picture_of_several_pages_is_its_first(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 6), c) for c in ("red", "blue")]
    for name, how in (("a.tiff", {}), ("a.jpg", {"format": "MPO"})):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **how)
        assert color(tmp_path / name)[0] > 250


def test_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for width, height in ((100_000, 100_000), (11_000, 11_000), (9_000, 9_000)):
        file = png(tmp_path / "a.png", width, height, 8, 2, b"")
        with pytest.raises(DecodeError, match=r"a\.png .*8K.*: scale it down"):
            read_picture(file)
    # A WebP whose canvas alone would take a gigabyte.
    side = (16_383).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(DecodeError, match="16384x16384"):
        read_picture(tmp_path / "a.webp")


def test_no_program_is_run_for_a_postscript_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DecodeError, match="no image that Pillow can read"):
        read_picture(tmp_path / "a.png")


def test_values_without_a_known_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "i.tiff")
    Image.fromarray(np.array([[0, 255]], np.float32)).save(tmp_path / "f.tiff")
    for name in ("i.tiff", "f.tiff"):
        with pytest.raises(DecodeError, match="scale them"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("kind", [*KINDS, "gif"])
def test_damage_is_one_line(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Cut off, and with bits flipped by a seeded fuzzer: pixels or one clear line, no warnings."""
    dice = random.Random(kind)
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "made by hand"
    more = {} if kind in ("bmp", "ppm", "gif") else {"exif": exif}
    whole = io.BytesIO()
    name = {"jpg": "JPEG", "ppm": "PPM"}.get(kind, kind.upper())
    Image.fromarray(noise).resize((64, 48)).save(whole, name, **more)
    file = tmp_path / f"a.{kind}"
    said = []
    for n in range(60):
        data = bytearray(whole.getvalue())
        if n % 3 == 0:
            data = data[: len(data) * n // 60]
        else:
            for _ in range(dice.randrange(1, 6)):
                data[dice.randrange(len(data) if n % 3 == 1 else 100)] = dice.randrange(256)
        file.write_bytes(data)
        try:
            read_picture(file)
        except FlamvidError as error:
            said.append(str(error))
    assert len(said) >= 15
    assert all(s.startswith(str(file)) and "\n" not in s and len(s) < 400 for s in said)
    assert capfd.readouterr().err == ""


def test_warnings_do_not_leak_from_threads(tmp_path: Path) -> None:
    file = png(tmp_path / "a.png", 10_000, 10_000, 8, 2, b"")  # Pillow warns of a bomb
    before = list(warnings.filters)

    def read() -> None:
        for _ in range(50):
            with pytest.raises(DecodeError):
                read_picture(file)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_folder(tmp_path: Path) -> None:
    for n in (10, 9, 1):
        save(tmp_path / f"frame{n}.png", (n, n, n))
    save(tmp_path / "._frame2.png", "red")  # what a Mac leaves
    with open_folder(tmp_path, None, fps=25) as source:
        assert source.info.fps == 25
        assert source.info.duration == pytest.approx(3 / 25)
        found = source.read([2, 0, 2])
    assert found.pixels[:, 0, 0, 0].tolist() == [10, 1, 10]
    np.testing.assert_allclose(found.pts_seconds, [2 / 25, 0, 2 / 25])
    np.testing.assert_allclose(found.duration_seconds, 1 / 25)
    assert source.read([]).pixels.shape == (0, 3, 6, 8)
    for fps in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="fps is"):
            open_folder(tmp_path, None, fps=fps)


def test_natural_order() -> None:
    names = ["a10.png", "a9.png", "a09.png", "b1.png", "A2.png", "a" + "9" * 5000 + ".png", "²3"]
    assert sorted(names, key=natural) == [
        *("A2.png", "a09.png", "a9.png", "a10.png", "a" + "9" * 5000 + ".png", "b1.png", "²3")
    ]


def test_sequence_begins_at_its_first_number(tmp_path: Path) -> None:
    for n in (97, 98, 99, 100):
        save(tmp_path / f"img_{n:04d}.png", (n, n, n))
    save(tmp_path / "img_5.png", "red")  # not as %04d writes it
    save(tmp_path / "img_00101.png", "red")
    pattern = tmp_path / "img_%04d.png"
    assert is_sequence(pattern)
    with open_sequence(pattern, None, fps=2) as source:
        assert source.info.container == "sequence"
        assert source.read(range(4)).pixels[:, 0, 0, 0].tolist() == [97, 98, 99, 100]
        np.testing.assert_allclose(source.pts, [0, 0.5, 1, 1.5])
    with open_sequence(tmp_path / "img_%d.png", None) as source:
        assert len(source.pts) == 1


def test_a_gap_in_a_sequence_is_named(tmp_path: Path) -> None:
    for n in (1, 2, 5):
        save(tmp_path / f"{n}.png", "red")
    with pytest.raises(SourceError, match=r"has a gap: 2\.png is followed by 5\.png; .* folder"):
        open_sequence(tmp_path / "%d.png", None)


def test_what_is_no_sequence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file matches"):
        open_sequence(tmp_path / "img_%04d.png", None)
    with pytest.raises(SourceError, match="can't be listed"):
        open_sequence(tmp_path / "missing" / "img_%04d.png", None)
    for name in ("%d_%d.png", "%s.png"):
        with pytest.raises(InputError, match="one number"):
            open_sequence(tmp_path / name, None)
    save(tmp_path / "100%d.png", "red")  # a file of that very name
    assert not is_sequence(tmp_path / "100%d.png")
    assert not is_sequence("img_0001.png")
    save(tmp_path / "50%_7.png", "red")
    assert len(open_sequence(tmp_path / "50%%_%d.png", None).pts) == 1
