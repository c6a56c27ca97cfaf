from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flamvid import video
from flamvid.errors import SourceError
from flamvid.video.live import LiveSource
from flamvid.video.truncation import missing_bytes
from tests.video.media_server import MediaServer


def save(path: Path, grey: int, size: tuple[int, int] = (8, 6)) -> None:
    Image.new("RGB", size, (grey, grey, grey)).save(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        video.open(tmp_path / "nothing.mp4")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(SourceError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        video.open(tmp_path / "empty.mp4")


@pytest.mark.parametrize("name", ["text.mp4", "text.mkv", "text", "text.txt"])
def test_a_file_that_is_no_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Call me Ishmael. " * 100)
    with pytest.raises(SourceError, match=r"no video|has no") as raised:
        video.open(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_sound_alone(tmp_path: Path, run_ffmpeg) -> None:
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(tmp_path / "sound.wav"))
    with pytest.raises(SourceError, match="no video stream"):
        video.open(tmp_path / "sound.wav")


@pytest.mark.parametrize("options", [("cut.mp4", "-movflags", "+faststart"), ("cut.mp4",)])
def test_a_truncated_mp4(make_clip, tmp_path: Path, options: tuple[str, ...]) -> None:
    _truncated(make_clip(*options), tmp_path)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi"])
def test_other_truncated_files(make_clip, tmp_path: Path, name: str) -> None:
    _truncated(make_clip(name), tmp_path)


def _truncated(whole: Path, folder: Path) -> None:
    assert missing_bytes(whole) == 0
    data = whole.read_bytes()
    cut = folder / whole.name
    cut.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(SourceError, match="truncated") as raised:
        video.open(cut)
    assert "\n" not in str(raised.value)


def test_folder_of_frames_in_natural_order(tmp_path: Path) -> None:
    for n in (10, 9, 1):
        save(tmp_path / f"frame{n}.png", n)
    (tmp_path / "notes.txt").write_text("not a frame")
    with video.open(tmp_path) as source:
        assert source.info.frames == 3
        frames = source.read([0, 1, 2])
    assert frames.pixels[:, 0, 0, 0].tolist() == [1, 9, 10]
    np.testing.assert_array_equal(frames.pts_seconds, [0, 1, 2])


def test_folder_without_frames(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a frame")
    with pytest.raises(SourceError, match="folder without frames"):
        video.open(tmp_path)


def test_frames_of_a_folder_must_agree_in_size_unless_resized(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 1)
    save(tmp_path / "2.png", 2, size=(9, 6))
    with video.open(tmp_path) as source, pytest.raises(SourceError, match="must agree in size"):
        source.read([0, 1])
    with video.open(tmp_path, size=(4, 4)) as source:
        assert source.read([0, 1]).pixels.shape == (2, 3, 4, 4)


def test_still_is_turned_upright_and_put_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), "red")
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    with video.open(tmp_path / "turned.jpg") as source:
        assert source.read([0]).pixels.shape == (1, 3, 4, 2)
        assert source.pts.tolist() == [0.0]
    Image.new("RGBA", (4, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    with video.open(tmp_path / "clear.png") as source:
        assert torch.equal(source.read([0]).pixels, torch.full((1, 3, 2, 4), 255).byte())


def test_broken_still(tmp_path: Path) -> None:
    save(tmp_path / "whole.png", 200, size=(300, 300))
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    for name in ("half.png", "text.jpg"):
        with pytest.raises(SourceError, match=name):
            video.open(tmp_path / name)


def test_names_that_look_like_options_or_protocols(make_clip, tmp_path: Path) -> None:
    for name in ("-y.ts", "concat:a.ts", "a b's.ts", "%05d.ts"):
        path = tmp_path / name
        path.write_bytes(make_clip("plain.ts").read_bytes())
        with video.open(path) as source:
            assert len(source.pts) == 60


def test_an_address_of_something_that_ends_is_a_recording(make_clip, numbers) -> None:
    files = {"/a.mp4": make_clip("a.mp4").read_bytes(), "/a.ts": make_clip("a.ts").read_bytes()}
    with MediaServer() as server:
        for name, data in files.items():
            server.routes[name] = data
            with video.open_source(server.url(name)) as source:
                assert not isinstance(source, LiveSource)
                assert len(source.pts) == 60
                assert numbers(source.read([40, 3, 3]).pixels) == [40, 3, 3]


def test_what_is_live_cannot_be_opened_as_a_recording(
    make_clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_clip("a.ts").open("rb") as stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        assert isinstance(video.open_source("-"), LiveSource)
        stream.seek(0)
        with pytest.raises(SourceError, match="is live and can't be wound back"):
            video.open("-")


def test_a_folder_that_is_called_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").mkdir()
    save(tmp_path / "x.tar" / "1.png", 7)
    with video.open(tmp_path / "x.tar") as source:
        assert source.info.frames == 1
