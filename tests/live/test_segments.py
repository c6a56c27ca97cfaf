"""Scenes of a recording: where they end, and captions of each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from flamvid.api import Captioner
from flamvid.errors import InputError
from flamvid.live import segments
from flamvid.live.look import Looker, View
from flamvid.live.trigger import ChangeConfig
from flamvid.weights.load import LoadedModel


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of red and four of blue."""
    path = tmp_path_factory.mktemp("scenes") / "walls.mp4"
    graph = "color=red:s=64x48:r=10:d=5[a];color=blue:s=64x48:r=10:d=4[b];[a][b]concat"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", graph]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


@pytest.fixture(autouse=True)
def sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's features of two walls are nearly the same."""
    made = ChangeConfig(high=0.001, low=0.0005, least=2.0)
    monkeypatch.setattr(segments, "ChangeConfig", lambda least: made)


def test_a_caption_for_each_scene(model: LoadedModel, clip: Path) -> None:
    captioner = Captioner(model)
    captions = captioner.caption(clip, segments=True)
    assert [(c.start, c.end) for c in captions] == [(0.0, 5.0), (5.0, pytest.approx(9.0))]
    for made in captions:
        [alone] = captioner.caption(clip, start=made.start, end=made.end, frames=4)
        assert alone.text == made.text
    assert captions[0].text != captions[1].text


def test_frames_of_a_segment_are_bounded(model: LoadedModel, clip: Path) -> None:
    view = View(segments=True, frames=3, fps=5.0, start=1.0, end=8.0)
    parts = list(segments.look_at_segments(Looker(model), clip, view))
    assert [(p.start, p.end) for p, _ in parts] == [(1.0, 5.0), (5.0, 8.0)]
    assert [len(features) for _, features in parts] == [3, 3]


def test_what_excludes_segments(model: LoadedModel, clip: Path) -> None:
    with pytest.raises(InputError, match="segments"):
        Captioner(model).caption(clip, segments=True, every=2.0)
