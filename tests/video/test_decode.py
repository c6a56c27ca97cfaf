"""Frames against what ffmpeg itself decodes, and against clips that say their frame numbers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from flamvid import video
from flamvid.errors import DecodeError, InputError
from flamvid.video import isolate
from flamvid.video.ffmpeg_file import _runs
from flamvid.video.shared import create

SHARED = Path(__file__).parents[3] / "shared"


def ffmpeg_frames(path: Path, height: int, width: int) -> np.ndarray:
    """All frames as the ffmpeg program decodes them, [N,3,H,W]."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    "name",
    ["aa_playing_guitar.mp4", "decord_flipping_a_pancake.mkv", "msvd_klteYv1Uv9A_27_33.avi"],
)
def test_pixels_are_those_of_ffmpeg(name: str) -> None:
    path = SHARED / "clips" / name
    with video.open(path) as source:
        expected = ffmpeg_frames(path, source.info.height, source.info.width)
        assert len(source.pts) == len(expected)
        at = [0, 7, 31, len(expected) - 1]
        np.testing.assert_array_equal(source.read(at).pixels.numpy(), expected[at])


@pytest.mark.needs_shared
def test_frames_before_an_edit_list_do_not_exist() -> None:
    path = SHARED / "clips" / "cve_vid1.mp4"  # 74 frames in the index, 56 shown
    with video.open(path) as source:
        expected = ffmpeg_frames(path, 360, 640)
        assert len(source.pts) == len(expected) == source.info.frames
        np.testing.assert_array_equal(source.read([0]).pixels[0].numpy(), expected[0])


@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("b_frames.mp4", ("-bf", "3"), "av"),
        ("late.mkv", ("-output_ts_offset", "5"), "av"),
        ("b_frames.ts", ("-bf", "3"), "ffmpeg"),
        ("no_pts.avi", ("-bf", "0"), "av"),
        ("reordered.avi", ("-bf", "3"), "ffmpeg"),
    ],
)
def test_frame_by_number(
    make_clip, numbers, name: str, options: tuple[str, ...], decoder: str
) -> None:
    with video.open(make_clip(name, *options)) as source:
        assert source.decoder == decoder
        np.testing.assert_allclose(source.pts, np.arange(60) / 25, atol=2e-3)
        at = [40, 0, 31, 59, 31]  # any order, with repeats
        frames = source.read(at)
        assert numbers(frames.pixels) == at
        np.testing.assert_allclose(frames.pts_seconds, np.array(at) / 25, atol=2e-3)
        np.testing.assert_allclose(frames.duration_seconds, 0.04, atol=2e-3)


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(
    "codec",
    [
        ("libx265", "-bf", "3", "-x265-params", "log-level=none"),
        ("mpeg4", "-bf", "2"),
        ("mpeg2video", "-bf", "2"),
        ("libx264", "-bf", "0", "-x264-params", "intra-refresh=1"),
        ("libx264", "-bf", "8", "-x264-params", "b-pyramid=normal:open-gop=1"),
        ("libsvtav1", "-preset", "12"),
    ],
    ids=["hevc", "mpeg4", "mpeg2", "intra-refresh", "open-gop", "av1"],
)
def test_reordered_frames_of_any_codec(
    make_clip, run_ffmpeg, tmp_path: Path, codec: tuple[str, ...], container: str
) -> None:
    # decord gives neighbours of the frames asked for in the first four.
    if codec[0] == "libsvtav1" and container == "mov":
        pytest.skip("ffmpeg writes no AV1 to MOV")
    path = tmp_path / f"reordered.{container}"
    graph = "testsrc2=s=128x96:r=25:d=2.4"
    options = ("-c:v", *codec, "-g", "12", "-pix_fmt", "yuv420p")
    run_ffmpeg("-f", "lavfi", "-i", graph, *options, str(path))
    expected = ffmpeg_frames(path, 96, 128)
    with video.open(path) as source:
        assert len(source.pts) == len(expected)
        at = [47, 1, 30, 13, 12, 11, 59, 0]
        np.testing.assert_array_equal(source.read(at).pixels.numpy(), expected[at])


@pytest.mark.parametrize("step", [1, 2, 7, 19])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_chunks_that_follow_each_other(make_clip, numbers, name: str, step: int) -> None:
    """A reader goes on where it was: what one request leaves out may be what the next one wants."""
    options = ("-bf", "5", "-x264-params", "b-pyramid=normal:b-adapt=0")
    with video.open(make_clip(name, *options, frames=75)) as source:
        at = list(range(0, 75, step))
        for first in range(0, len(at), 4):
            chunk = at[first : first + 4]
            assert numbers(source.read(chunk).pixels) == chunk
        back = at[len(at) // 2]
        assert numbers(source.read([back, 74]).pixels) == [back, 74]


def test_variable_frame_rate(make_clip, numbers) -> None:
    # Of 60 frames the first 30 stay, then every third.
    path = make_clip("vfr.mp4", "-fps_mode", "vfr", filters=",select='lt(n,30)+not(mod(n,3))'")
    with video.open(path) as source:
        shown = [*range(30), *range(30, 60, 3)]
        np.testing.assert_allclose(source.pts[:40], np.array(shown) / 25, atol=2e-3)
        assert numbers(source.read(range(40)).pixels) == shown


def test_a_cut_without_encoding_starts_where_the_player_starts(
    make_clip, numbers, run_ffmpeg, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.mp4"
    whole = make_clip("whole.mp4", "-bf", "2")
    run_ffmpeg("-ss", "0.8", "-i", str(whole), "-c", "copy", str(cut))
    with video.open(cut) as source:
        shown = numbers(torch.from_numpy(ffmpeg_frames(cut, 48, 64).copy()))
        assert numbers(source.read(range(len(source.pts))).pixels) == shown
        assert source.pts[0] == 0


def test_rotation_is_applied(make_clip, run_ffmpeg, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    clip = make_clip("upright.mp4", size="96x48")
    run_ffmpeg("-display_rotation:v:0", "90", "-i", str(clip), "-c", "copy", str(turned))
    with video.open(turned) as source:
        assert (source.info.width, source.info.height, source.info.rotation) == (48, 96, 270)
        assert source.read([3]).pixels.shape == (1, 3, 96, 48)
    with video.open(turned, size=(20, 10)) as source:
        assert source.read([3]).pixels.shape == (1, 3, 20, 10)


@pytest.mark.parametrize(
    "turn",
    [
        ("-display_rotation:v:0", "90"),
        ("-display_rotation:v:0", "180"),
        ("-display_rotation:v:0", "270"),
        ("-display_rotation:v:0", "45"),
        ("-display_hflip:v:0",),
        ("-display_vflip:v:0",),
        ("-display_rotation:v:0", "90", "-display_hflip:v:0"),
        ("-display_rotation:v:0", "270", "-display_hflip:v:0"),
    ],
    ids=" ".join,
)
def test_any_display_matrix_is_applied_as_ffmpeg_does(
    run_ffmpeg, tmp_path: Path, turn: tuple[str, ...]
) -> None:
    upright, turned = tmp_path / "upright.mp4", tmp_path / "turned.mp4"
    graph = "testsrc2=s=128x96:r=25:d=0.4"
    run_ffmpeg("-f", "lavfi", "-i", graph, "-pix_fmt", "yuv420p", str(upright))
    run_ffmpeg(*turn, "-i", str(upright), "-c", "copy", str(turned))
    with video.open(turned) as source:
        found = source.read([2, 9]).pixels.numpy()
    expected = ffmpeg_frames(turned, *found.shape[2:])
    np.testing.assert_array_equal(found, expected[[2, 9]])


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_decode_time_resize(make_clip, name: str) -> None:
    with video.open(make_clip(name), size=(30, 50)) as source:
        assert source.read([1, 5]).pixels.shape == (2, 3, 30, 50)
        assert (source.info.height, source.info.width) == (48, 64)


def test_many_scattered_frames_of_a_stream(make_clip, numbers) -> None:
    with video.open(make_clip("long.ts", frames=75)) as source:
        odd = list(range(1, 75, 2))
        assert numbers(source.read(odd).pixels) == odd


def test_damage_in_the_middle_is_an_error_that_names_the_file(make_clip, tmp_path: Path) -> None:
    data = bytearray(make_clip("good.mp4", "-movflags", "+faststart", frames=75).read_bytes())
    at = data.index(b"mdat") + 4
    data[at + 2000 : -1] = bytes(len(data) - at - 2001)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    with pytest.raises(DecodeError, match=r"bad\.mp4 can't be decoded"), video.open(bad) as source:
        source.read(range(len(source.pts)))


def test_runs() -> None:
    assert _runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]


def test_a_decoder_that_is_asked_for(make_clip, numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMVID_DECODER", "av")
    with video.open(make_clip("a.mp4", "-bf", "3")) as source:
        assert (source.decoder, source.reason.endswith("asks for it")) == ("av", True)
        assert numbers(source.read([40, 3, 31]).pixels) == [40, 3, 31]
    with video.open(make_clip("a.ts", "-bf", "3")) as source:  # where it would be wrong, never
        assert source.decoder == "ffmpeg"
    monkeypatch.setenv("FLAMVID_DECODER", "magic")
    with pytest.raises(InputError, match="FLAMVID_DECODER is 'magic'"):
        video.open(make_clip("a.mp4"))


def test_decord_reads_what_it_is_asked_to_and_reads_right(
    make_clip, numbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMVID_DECODER", "decord")
    with video.open(make_clip("a.mp4", "-bf", "3")) as source:
        assert source.decoder == "decord"
        assert numbers(source.read([40, 3, 31, 3]).pixels) == [40, 3, 31, 3]
    hevc = make_clip("h.mp4", "-c:v", "libx265", "-bf", "3", "-x265-params", "log-level=none")
    with video.open(hevc) as source:
        assert source.decoder == "av"
        assert "decord gives other frames of hevc" in source.reason


def test_more_frames_than_shared_memory_takes(make_clip) -> None:
    clip = make_clip("a.mp4")
    with (
        video.open(clip, size=(1200, 1600)) as source,  # 5.8 MB each, of 16 MiB
        video.open(clip, size=(24, 32)) as small,
    ):
        for at in ([0, 50, 7, 21, 7], [9]):  # each frame is one grey
            found = source.read(at).pixels[:, :, ::50, ::50].float().mean((1, 2, 3))
            assert found.tolist() == small.read(at).pixels.float().mean((1, 2, 3)).tolist()


def test_without_shared_memory(make_clip, numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "create", lambda: None)
    monkeypatch.setattr(isolate, "_idle", [])
    with video.open(make_clip("a.mp4")) as source:
        assert numbers(source.read([40, 3, 31, 3]).pixels) == [40, 3, 31, 3]


@pytest.mark.parametrize(
    ("at", "shape"),
    [(-1, (2, 2, 3)), (0, (1 << 20, 1 << 20, 3)), ((16 << 20) - 1, (1, 1, 3)), (0, (0, -1, 3))],
)
def test_a_child_can_not_point_outside_of_shared_memory(
    at: int, shape: tuple[int, int, int]
) -> None:
    made = create()
    if made is None:
        pytest.skip("no shared memory here")
    descriptor, board = made
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    with pytest.raises(ValueError, match=r"board|buffer"):
        board.get(at, shape)
