"""Tars of frames: which are one source, which hold several, and which must be refused."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamvid.errors import FlamvidError, InputError, SourceError
from flamvid.video.archive import is_archive, open_archive, samples


def png(grey: int, size: tuple[int, int] = (8, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("L", size, grey).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, *names: str, how: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members; a picture's grey is the first number in its name."""
    with tarfile.open(path, "w", format=how) as out:
        for name in names:
            digits = "".join(c for c in name.rpartition("/")[2] if c.isdigit())
            data = png(int(digits[:3])) if name.endswith(".png") else b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


def greys(source) -> list[int]:
    return source.read(range(len(source.pts))).pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("how", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_frames_in_natural_order(how: int, tmp_path: Path) -> None:
    names = ("f10.png", "f9.png", "f1.png", "notes.txt", "._f2.png")
    path = tar(tmp_path / "a.tar", *(f"./long{'é' * 30}/{n}" for n in names), how=how)
    before = set(tmp_path.iterdir())
    with open_archive(path, None, fps=10) as source:
        assert greys(source) == [1, 9, 10]
        assert source.read([2, 0, 2]).pixels[:, 0, 0, 0].tolist() == [10, 1, 10]
        np.testing.assert_allclose(source.pts, [0, 0.1, 0.2])
        assert (source.info.container, source.info.codec) == ("archive", "png")
    with open_archive(path, (4, 4)) as source:
        assert source.read([0]).pixels.shape == (1, 3, 4, 4)
        assert source.info.duration == 3  # a second each
    assert set(tmp_path.iterdir()) == before  # nothing is unpacked


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("1.png", "2.png"), {"": 2}),
        (("clip.001.png", "clip.002.png"), {"clip": 2}),
        (("a.f00.png", "a.f01.png", "a.json", "b.f00.png", "b.json"), {"a": 2, "b": 1}),
        (("x/000.png", "x/000.json", "x/001.png", "x/001.json"), {"x/000": 1, "x/001": 1}),
        (("a/1.png", "a/2.png", "b/1.png"), {"a": 2, "b": 1}),
        (("1.png", "2.png", "index.json"), {"": 2}),
        (("readme.txt",), {}),
    ],
)
def test_samples(names: tuple[str, ...], expected: dict[str, int], tmp_path: Path) -> None:
    found = samples(tar(tmp_path / "a.tar", *names))
    assert {name: len(members) for name, members in found.items()} == expected


def test_one_of_several_samples(tmp_path: Path) -> None:
    names = [f"s{n}.f{i:02d}.png" for n in range(5) for i in range(2)]
    path = tar(tmp_path / "shard.tar", *names, *(f"s{n}.json" for n in range(5)))
    with pytest.raises(InputError, match=r"5 samples \(s0, s1, s2, \.\.\.\): .*shard\.tar#s0$"):
        open_archive(path, None)
    with open_archive(f"{path}#s3", None) as source:
        assert len(source.pts) == 2
        assert source.info.path == f"{path}#s3"
    with pytest.raises(InputError, match=r"no sample s9; it has s0, s1, s2, \.\.\."):
        open_archive(f"{path}#s9", None)


def test_what_names_an_archive(tmp_path: Path) -> None:
    assert is_archive("a.tar")
    assert is_archive("dir/a.TAR#b/c")
    assert is_archive("a.tar.gz")
    assert not is_archive("a.tar/b.mp4")
    assert not is_archive("movie#1.mp4")
    path = tar(tmp_path / "take#1.tar", "1.png")
    assert is_archive(path)
    assert len(open_archive(path, None).pts) == 1
    whole = tar(tmp_path / "b.tar#1.tar", "1.png", "2.png")  # a file of that very name
    assert len(open_archive(whole, None).pts) == 2


def test_names_are_never_opened(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", "../../../etc/1.png", "../../../etc/2.png")
    with open_archive(path, None) as source:
        assert greys(source) == [1, 2]
    with tarfile.open(path, "w") as out:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            out.addfile(member)
        for name, kind in (("3.png", tarfile.CHRTYPE), ("4.png", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            out.addfile(member)
    with pytest.raises(SourceError, match="holds no frames"):
        open_archive(path, None)


def test_a_name_of_several_lines_is_shown_on_one(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", "1\nx.png", "2.png")
    data = bytearray(path.read_bytes())
    at = data.index(png(1))
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar: '1\\nx\.png' is no image") as raised:
        open_archive(path, None)
    assert "\n" not in str(raised.value)


def test_the_later_of_two_of_a_name_counts(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", "1.png", "2.png")
    with tarfile.open(path, "a") as out:
        member = tarfile.TarInfo("1.png")
        member.size = len(png(200))
        out.addfile(member, io.BytesIO(png(200)))
    assert greys(open_archive(path, None)) == [200, 2]


@pytest.mark.parametrize(
    "magic", [b"\x1f\x8b\x08\0", b"BZh91AY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]
)
def test_packed(magic: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(magic + bytes(2000))
    with pytest.raises(SourceError, match=r"is packed by \w+, .*; unpack it"):
        open_archive(tmp_path / "a.tar.gz", None)


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (b"", b"text" * 1000, bytes(100), gzip.compress(b"x"), b"\xff" * 4096):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.tar is"):
            open_archive(path, None)
    path.write_bytes(bytes(1024))
    with pytest.raises(SourceError, match="holds no frames"):
        open_archive(path, None)
    with pytest.raises(SourceError, match="does not exist"):
        open_archive(tmp_path / "missing.tar", None)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar", "1.png", "2.png", "3.png").read_bytes()
    path = tmp_path / "cut.tar"
    for size in range(512, 3 * 1024 + 1, 256):  # a member takes 1024 bytes
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"cut\.tar is (truncated|damaged|no sound tar)"):
            open_archive(path, None)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", "1.png", "2.png", "3.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"2.png") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="damaged or truncated at byte 1024"):
        open_archive(path, None)


def test_lengths_that_lie(tmp_path: Path) -> None:
    """Negative, endless, and a header that would be read into memory."""
    path = tmp_path / "a.tar"
    for kind, size in (
        (tarfile.REGTYPE, -512),
        (tarfile.REGTYPE, 1 << 40),
        (tarfile.XHDTYPE, -512),
        (tarfile.XHDTYPE, 1 << 40),
        (tarfile.GNUTYPE_LONGNAME, 1 << 30),
    ):
        member = tarfile.TarInfo("1.png")
        member.type, member.size = kind, size
        head = member.tobuf(tarfile.GNU_FORMAT)
        path.write_bytes(head + bytes(4096))
        with pytest.raises(SourceError, match=r"a\.tar is (truncated|no sound tar)"):
            open_archive(path, None)


def test_a_member_over_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", "1.png")
    monkeypatch.setattr("flamvid.video.archive._MOST_BYTES", 10)
    with pytest.raises(SourceError, match=r"a\.tar: 1\.png has \d+ bytes"):
        open_archive(path, None)


def test_bits_flipped(tmp_path: Path) -> None:
    """Frames or one line, whatever is damaged."""
    whole = tar(tmp_path / "a.tar", *(f"fr/{n}.png" for n in range(6))).read_bytes()
    dice = random.Random(0)
    path = tmp_path / "b.tar"
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            header = 1024 * dice.randrange(6)
            data[header + dice.choice([0, 100, 124, 130, 135, 148, 156, 257, 482])] = dice.choice(
                [0, 0x2D, 0x4C, 0x53, 0x78, 0x80, 0xFF, dice.randrange(256)]
            )
        for header in range(0, len(data), 1024):  # as if it had been written so
            if data[header + 257 : header + 262] == b"ustar":
                data[header + 148 : header + 156] = b" " * 8
                data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
        path.write_bytes(data)
        said = ""
        try:
            greys(open_archive(path, None))
        except FlamvidError as error:
            said = str(error)
        assert "\n" not in said
