"""Media and text in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flamvid.api import Captioner
from flamvid.errors import InputError
from tests.tiny import picture


def wall(folder: Path, name: str, rgb: tuple[int, int, int]) -> Path:
    path = folder / f"{name}.png"
    Image.fromarray(picture(rgb, 48)).save(path)
    return path


def test_one_medium_is_a_caption(captioner: Captioner, clip: Path) -> None:
    [caption] = captioner.caption(clip)
    assert captioner.complete(clip) == caption.text


def test_the_text_sees_the_medium_in_front_of_it(captioner: Captioner, tmp_path: Path) -> None:
    red, blue = wall(tmp_path, "red", (200, 0, 0)), wall(tmp_path, "blue", (0, 0, 200))
    shot = captioner.complete(red, "one", blue, beams=1)
    assert shot == captioner.complete(red, " one", blue, beams=1)
    assert shot != captioner.complete(blue, "one", red, beams=1)


def test_media_of_different_lengths(captioner: Captioner, clip: Path, tmp_path: Path) -> None:
    red = wall(tmp_path, "red", (200, 0, 0))
    assert captioner.complete(clip, "one", red) == captioner.complete(clip, "one", red)
    assert captioner.complete(clip, "one", red, frames=2)


def test_text_alone(captioner: Captioner) -> None:
    with pytest.raises(InputError, match="no medium among the parts"):
        captioner.complete("video.mp4")
