"""pytorchvideo's clip samplers as segments, and its transforms without a trace of the alias."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamvid.errors import InputError
from flamvid.types import Frames, Segment
from flamvid.video.clip_sampling import as_clip, clip_segments, make_sampler, transforms

ALIAS = "torchvision.transforms.functional_tensor"


def test_uniform() -> None:
    assert list(clip_segments(make_sampler("uniform", 2), 5.0)) == [Segment(0, 2), Segment(2, 4)]
    padded = clip_segments(make_sampler("uniform", 2, 1, True), 4.5)
    assert [s.start for s in padded] == [0, 1, 2, 2.5]
    # Ten times 0.1 is more than 1 in binary: theirs would lose the last clip.
    assert len(list(clip_segments(make_sampler("uniform", 0.1), 1.0))) == 10


def test_constant_clips_per_video() -> None:
    found = clip_segments(make_sampler("constant_clips_per_video", 2, 4), 10.0)
    assert [s.start for s in found] == [0, 2, 4, 6]
    twice = clip_segments(make_sampler("constant_clips_per_video", 2, 2, 2), 10.0)
    assert [s.start for s in twice] == [0, 0, 4, 4]


def test_a_video_shorter_than_a_clip() -> None:
    for kind, *settings in (("uniform", 9), ("random", 9), ("constant_clips_per_video", 9, 1)):
        assert list(clip_segments(make_sampler(kind, *settings), 2.5)) == [Segment(0, 2.5)]


def test_random_is_seeded_and_leaves_random_alone() -> None:
    random.seed(5)
    before = random.getstate()
    sampler = make_sampler("random", 2)
    one = list(clip_segments(sampler, 60.0, seed=1, passes=20))
    assert one == list(clip_segments(sampler, 60.0, seed=1, passes=20))
    assert one != list(clip_segments(sampler, 60.0, seed=2, passes=20))
    assert random.getstate() == before
    assert len(set(one)) == 20
    assert list(clip_segments(make_sampler("random_multi", 2, 20), 60.0, seed=1)) == one


@given(
    st.sampled_from(["random", "uniform", "constant_clips_per_video", "random_multi"]),
    st.floats(0.1, 100.0),
    st.floats(0.1, 30.0),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_clips_are_finite_inside_and_resumable(
    kind: str, duration: float, seconds: float, count: int, skip: int, passes: int
) -> None:
    more = {"uniform": (seconds / count,), "random": ()}.get(kind, (count,))
    sampler = make_sampler(kind, seconds, *more)
    whole = list(clip_segments(sampler, duration, seed=3, passes=passes))
    assert len(whole) >= passes
    for clip in whole:
        assert -1e-9 <= clip.start < clip.end <= duration
        assert clip.end - clip.start <= seconds + 1e-5
    rest = clip_segments(sampler, duration, seed=3, passes=passes, skip=skip)
    assert list(rest) == whole[skip:]
    # Two at once do not disturb each other, though a sampler of theirs has a state.
    both = itertools.zip_longest(
        *(clip_segments(sampler, duration, seed=3, passes=passes) for _ in range(2))
    )
    assert all(a == b for a, b in both)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("unifrom", 2), "did you mean uniform"),
        (("uniform",), "must be above 0"),
        (("uniform", 0), "must be above 0"),
        (("uniform", float("inf")), "must be above 0"),
        (("uniform", 1, 2), "stride must be"),
        (("constant_clips_per_video", 1), "clips_per_video"),
        (("constant_clips_per_video", 1, 0), "must be above 0"),
    ],
)
def test_senseless_settings_are_refused(settings: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_sampler(*settings)


def test_senseless_videos_are_refused() -> None:
    sampler = make_sampler("uniform", 2)
    for duration in (0.0, -1.0, float("nan"), float("inf")):  # theirs never ends at the last
        with pytest.raises(InputError, match="the duration is"):
            clip_segments(sampler, duration)
    with pytest.raises(InputError, match="skip is -1"):
        clip_segments(sampler, 5.0, skip=-1)


def test_transforms_take_our_frames() -> None:
    pixels = torch.randint(0, 256, (12, 3, 30, 40), dtype=torch.uint8)
    frames = Frames(pixels, np.arange(12) / 25, np.full(12, 1 / 25))
    clip = as_clip(frames)
    assert (clip.shape, clip.dtype) == ((3, 12, 30, 40), torch.float32)
    assert torch.equal(clip[:, 5], pixels[5].float())

    theirs = transforms()
    assert theirs.ShortSideScale(15)(clip).shape == (3, 12, 15, 20)
    picked = theirs.UniformTemporalSubsample(4)(clip)
    assert torch.equal(picked, clip[:, [0, 3, 7, 11]])
    normal = theirs.Normalize((127.5,) * 3, (127.5,) * 3)(clip)
    assert normal.abs().max() <= 1


def test_the_alias_is_gone() -> None:
    theirs = transforms()
    assert ALIAS not in sys.modules
    assert theirs is transforms()
    import torchvision.transforms

    assert not hasattr(torchvision.transforms, "functional_tensor")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, flamvid.video.clip_sampling as c;"
        "assert not [m for m in sys.modules if m.startswith('pytorchvideo')];"
        f"c.transforms(); assert {ALIAS!r} not in sys.modules;"
        "assert 'pytorchvideo.transforms' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
