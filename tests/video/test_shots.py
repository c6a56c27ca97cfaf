"""Cuts at known times between made and real scenes, and what only looks like a cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flamvid import video
from flamvid.errors import InputError
from flamvid.types import Frames, Segment
from flamvid.video.pictures import open_picture
from flamvid.video.shots import SIZE, Shots, find_shots

SHARED = Path(__file__).parents[3] / "shared"
FPS = 25


def scene(seed: int, frames: int, speed: float = 0.5) -> torch.Tensor:
    """A camera that moves over a picture with coarse and fine detail, float [T,3,27,48]."""
    dice = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, 160, 280)
    for cells, weight in ((2, 0.45), (6, 0.3), (24, 0.25)):
        noise = torch.rand(1, 3, cells, 2 * cells, generator=dice)
        picture += weight * torch.nn.functional.interpolate(noise, (160, 280), mode="bilinear")
    picture = (picture - picture.amin()) / (picture.amax() - picture.amin())
    # There and back along both sides, so that it never leaves the picture.
    x, y = (
        [round(abs((speed * t * pace + side) % (2 * side) - side)) for t in range(frames)]
        for pace, side in ((1.0, 232), (0.6, 133))
    )
    return torch.stack([picture[0, :, b : b + 27, a : a + 48] for a, b in zip(x, y, strict=True)])


def frames(pixels: torch.Tensor, fps: float = FPS) -> Frames:
    T = len(pixels)
    rounded = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Frames(rounded, np.arange(T) / fps, np.full(T, 1 / fps))


def cuts(pixels: torch.Tensor, fps: float = FPS) -> list[float]:
    found = find_shots([frames(pixels, fps)])
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(len(pixels) / fps)
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    return [s.start for s in found[1:]]


@pytest.mark.parametrize("fps", [10, 25, 60])
@pytest.mark.parametrize("speed", [0.0, 1.0, 3.0])
def test_cuts_are_found_to_the_frame(fps: int, speed: float) -> None:
    lengths = [round(s * fps) for s in (1.0, 0.6, 2.0, 3.0, 0.8, 1.5)]
    joined = torch.cat([scene(seed, n, speed) for seed, n in enumerate(lengths)])
    expected = np.cumsum(lengths)[:-1] / fps
    np.testing.assert_allclose(cuts(joined, fps), expected)


def test_cuts_between_flat_colours_and_in_black_and_white() -> None:
    flat = [
        torch.tensor(c).view(1, 3, 1, 1).expand(30, 3, 27, 48) for c in ((0.0, 0, 0.5), (1, 0, 0))
    ]
    assert cuts(torch.cat(flat)) == [30 / FPS]
    grey = torch.cat([scene(seed, 30) for seed in range(4)]).mean(1, keepdim=True)
    assert cuts(grey.expand(-1, 3, -1, -1)) == [30 / FPS, 60 / FPS, 90 / FPS]


def test_pictures_shown_for_several_frames_each_are_no_cuts() -> None:
    joined = torch.cat([scene(1, 20, 3.0), scene(2, 20, 3.0)]).repeat_interleave(3, 0)
    assert cuts(joined) == [60 / FPS]


def whip() -> torch.Tensor:
    return scene(3, 150, 14.0)


def flicker() -> torch.Tensor:
    light = 0.4 + 0.6 * torch.rand(150, generator=torch.Generator().manual_seed(0))
    return scene(4, 150) * light.view(-1, 1, 1, 1)


def flashes() -> torch.Tensor:
    pixels = scene(5, 150)
    for first, count in ((30, 1), (70, 2), (110, 4)):
        pixels[first : first + count] = 1
    return pixels


def light_switched_on() -> torch.Tensor:
    light = torch.where(torch.arange(150) < 75, 0.6, 1.0)
    return scene(6, 150) * light.view(-1, 1, 1, 1)


def fade_in_and_out() -> torch.Tensor:
    t = torch.arange(200) / 25
    return scene(7, 200) * torch.minimum(t, 8 - 1 - t).clamp(0, 1).view(-1, 1, 1, 1)


def noise() -> torch.Tensor:
    return torch.rand(100, 3, 27, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "make", [whip, flicker, flashes, light_switched_on, fade_in_and_out, noise]
)
def test_what_is_no_cut(make) -> None:
    assert cuts(make()) == []


@pytest.mark.parametrize("length", [10, 25])
@pytest.mark.parametrize("black", [0, 12])
def test_a_fade_is_one_bound_within_it(length: int, black: int) -> None:
    a, b = scene(8, 60, 0.2), scene(9, 60, 0.2)
    weight = torch.linspace(0, 1, length).view(-1, 1, 1, 1)
    if black:  # through black
        down, up = a[60 - length :] * (1 - weight), b[:length] * weight
        between = torch.cat([down, torch.zeros(black, 3, 27, 48), up])
    else:
        between = a[60 - length :] * (1 - weight) + b[:length] * weight
    (found,) = cuts(torch.cat([a[: 60 - length], between, b[length:]]))
    assert (60 - length) / FPS - 0.2 <= found <= (60 - length + len(between)) / FPS + 0.2


def test_no_shot_is_shorter_than_asked() -> None:
    joined = torch.cat([scene(seed, 10) for seed in range(10)])
    for shortest in (0.2, 0.5, 1.0):
        found = find_shots([frames(joined)], shortest=shortest)
        assert all(s.end - s.start >= shortest - 1e-6 for s in found)
    assert len(find_shots([frames(joined)], shortest=0.2)) == 10
    with pytest.raises(InputError, match="must be above 0"):
        find_shots([], shortest=0)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 159), max_size=12))
def test_chunks_do_not_matter(at: list[int]) -> None:
    whole = frames(torch.cat([scene(seed, 40) for seed in range(4)]))
    bounds = [0, *sorted(at), 160]

    def chunks() -> Iterator[Frames]:
        for a, b in itertools.pairwise(bounds):
            yield Frames(whole.pixels[a:b], whole.pts_seconds[a:b], whole.duration_seconds[a:b])

    assert find_shots(chunks()) == find_shots([whole])


def test_time_is_that_of_pts() -> None:
    """A clip of variable frame rate: the second half shows each frame three times as long."""
    pixels = frames(torch.cat([scene(1, 40), scene(2, 40)])).pixels
    durations = np.repeat([0.04, 0.12], 40)
    pts = np.cumsum(durations) - durations
    found = find_shots([Frames(pixels, pts, durations)])
    assert [s.start for s in found] == pytest.approx([0, 1.6])
    assert found[-1].end == pytest.approx(1.6 + 4.8)


def test_nothing_and_next_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames"):
        find_shots([])
    assert find_shots([frames(scene(1, 1))]) == [Segment(0, 1 / FPS)]
    file = tmp_path / "still.png"
    Image.new("RGB", (64, 48), "red").save(file)
    still = open_picture(file, None)
    assert find_shots(still) == [Segment(0, 0)]
    assert Shots.of(still, 4).indices(still.pts, still.durations).tolist() == [0]


def test_scenes_of_ffmpeg(run_ffmpeg, tmp_path: Path) -> None:
    """Coded clips: hard cuts, a pan over a fractal, and a fade to black at the end."""
    made = (
        ("testsrc2=s=320x240:r=25:d=1.2", ""),
        ("mandelbrot=s=320x240:r=25,trim=duration=1.6", ""),
        ("smptehdbars=s=320x240:r=25:d=0.8", ""),
        ("mandelbrot=s=960x720:r=25:start_scale=0.4,trim=duration=2", ",crop=320:240:x=8*n:y=4*n"),
        ("gradients=s=320x240:r=25:d=2:seed=4", ",fade=out:st=1:d=0.8"),
    )
    graph = "".join(
        f"{src}{more},setsar=1,format=yuv420p[{i}];" for i, (src, more) in enumerate(made)
    )
    graph += "".join(f"[{i}]" for i in range(len(made))) + f"concat=n={len(made)}"
    clip = tmp_path / "joined.mp4"
    run_ffmpeg("-f", "lavfi", "-i", graph, "-c:v", "libx264", "-preset", "ultrafast", str(clip))
    with video.open(clip, size=SIZE) as source:
        found = find_shots(source)
    assert [s.start for s in found] == pytest.approx([0, 1.2, 2.8, 3.6, 5.6], abs=0.001)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchcodec_nasa_13013.mp4", [5.5, 8.01]),  # a dissolve of a second, and a cut
        ("msvd_klteYv1Uv9A_27_33.avi", []),  # a fast ride
        ("decord_flipping_a_pancake.mkv", []),  # somebody walks in front of the camera
        ("mmaction2_structuralize.mp4", []),  # the camera is swung round
    ],
)
def test_real_clips(name: str, expected: list[float]) -> None:
    with video.open(SHARED / "clips" / name, size=SIZE) as source:
        found = [s.start for s in find_shots(source)[1:]]
    assert len(found) == len(expected)
    for time, near in zip(found, expected, strict=True):
        assert abs(time - near) < (0.5 if near == 5.5 else 0.02)


@pytest.mark.needs_shared
def test_real_clips_joined() -> None:
    """Second by second from clip to clip: precision and recall are 1 on this one."""
    names = ("aa_playing_guitar.mp4", "msvd_WTf5EgVY5uU_124_128.avi", "cve_vid1.mp4")
    parts = []
    for name in names:
        with video.open(SHARED / "clips" / name, size=SIZE) as source:
            parts += [(name, source.read(range(a, a + 27)).pixels) for a in (0, 29)]
    order = [parts[i] for i in (0, 2, 4, 1, 3, 5, 2, 0)]
    joined = torch.cat([pixels for _, pixels in order]) / 255
    assert cuts(joined) == pytest.approx(np.arange(1, 8) * 27 / FPS)


@given(
    st.lists(st.floats(0.2, 9.0), min_size=1, max_size=12),
    st.integers(1, 20),
    st.floats(0.02, 0.5),
)
def test_shots_are_sampled_in_turn(lengths: list[float], n: int, step: float) -> None:
    ends = np.cumsum(lengths)
    segments = tuple(Segment(float(b - a), float(b)) for a, b in zip(lengths, ends, strict=True))
    pts = np.arange(0, ends[-1], step)
    durations = np.diff(pts, append=ends[-1])
    at = Shots(segments, n).indices(pts, durations)
    assert 1 <= len(at) <= n
    assert (np.diff(at) > 0).all()
    if n >= len(segments) and step < 0.1:  # every shot is seen
        middles = np.array([(s.start + s.end) / 2 for s in segments])
        nearest = np.abs(pts[at][None] - middles[:, None]).min(1)
        assert (nearest <= np.array(lengths) / 2 + step).all()


def test_one_frame_of_each_shot_is_its_middle() -> None:
    segments = (Segment(0, 2), Segment(2, 3), Segment(3, 10))
    pts, durations = np.arange(100) / 10, np.full(100, 0.1)
    assert Shots(segments, 3).indices(pts, durations).tolist() == [10, 25, 65]
    assert Shots(segments, 1).indices(pts, durations).tolist() == [25]
    assert Shots(segments, 5).indices(pts, durations).tolist() == [10, 25, 41, 65, 88]
    assert Shots(segments, 2).indices(pts, durations, start=2.0, end=4.0).tolist() == [25, 35]
    with pytest.raises(InputError, match="at least 1"):
        Shots(segments, 0)
