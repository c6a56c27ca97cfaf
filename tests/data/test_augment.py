"""What is done to frames, against torchvision and PIL, and the same for all frames of a clip."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flamvid.data.augment import fit
from tests.data.conftest import corpus

FILL = (0.2, 0.4, 0.6)


def config(**settings: Any) -> Any:
    return corpus("videos", "x", fill=FILL, **settings)


def noise(T: int, H: int, W: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (T, 3, H, W), np.uint8))


def test_the_paper_s_values_are_the_defaults() -> None:
    paper = corpus("videos", "x", size=320)
    assert (paper.frames, paper.fps, paper.size, paper.resize) == (8, 1.0, 320, "pad")
    assert (paper.leading_space, paper.next, paper.media) == (0.5, 0.5, 5)
    kinds = {"interleaved": False, "images": True, "videos": False}
    tokens = {kind: corpus(kind, "x").tokens(picture) for kind, picture in kinds.items()}
    assert tokens == {"interleaved": 256, "images": 64, "videos": 32}


@pytest.mark.parametrize(("H", "W", "inside"), [(40, 80, (8, 16)), (80, 40, (16, 8))])
def test_padding_keeps_the_aspect_and_is_of_the_mean_colour(
    H: int, W: int, inside: tuple[int, int]
) -> None:
    frames = torch.full((2, 3, H, W), 255, dtype=torch.uint8)
    out = fit(frames, config(size=16))
    assert out.shape == (2, 3, 16, 16)
    white = (out == 255).all(1)[0]
    rows, columns = white.any(1).sum(), white.any(0).sum()
    assert (int(rows), int(columns)) == inside
    assert out[0, :, 0, 0].tolist() == [51, 102, 153]
    assert out[1, :, -1, -1].tolist() == [51, 102, 153]


def test_resizing_is_that_of_pillow() -> None:
    frames = noise(1, 64, 64)
    ours = fit(frames, config(size=24, resize="squash"))[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(frames[0].permute(1, 2, 0).numpy())
    theirs = np.array(picture.resize((24, 24), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    # Frame 1 is frame 0 with a bright bar: elsewhere the two must stay the same, whatever is drawn.
    frames = noise(2, 16, 16)
    frames[1] = frames[0]
    frames[1, :, :4] = 255
    mirrored = 0
    for seed in range(20):
        out = fit(frames, config(flip=0.5, jitter=0.4), random.Random(seed))
        torch.testing.assert_close(out[0, :, 4:], out[1, :, 4:], rtol=0, atol=0)
        assert not torch.equal(out[0], frames[0])
        plain = fit(frames, config(flip=0.5), random.Random(seed))
        same, flipped = torch.equal(plain, frames), torch.equal(plain, frames.flip(-1))
        assert same or flipped
        mirrored += flipped
    assert 4 < mirrored < 16
