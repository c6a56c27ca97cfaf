"""Streaming with a window as long as the clip equals looking at the whole clip at once."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

from flamvid import video
from flamvid.api import Captioner, load
from flamvid.generate.config import GenerationConfig
from flamvid.live.captioner import LiveCaptioner, LiveConfig
from flamvid.live.cue import Cue
from flamvid.live.look import Looker, View
from flamvid.live.memory import MemoryConfig
from flamvid.types import Caption, Segment
from flamvid.video.sample import frame_at
from flamvid.video.stream import open_stream
from flamvid.weights.load import LoadedModel
from tests.conftest import SHARED

FPS = 2.0
SEARCH = GenerationConfig(beams=3, length_penalty=1.0)  # as `caption` does


def make(path: Path, graph: str) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", graph]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


def generated(folder: Path) -> list[Path]:
    """Clips of odd rates, sizes and containers."""
    sources = [
        ("walls.mp4", "testsrc2=s=320x240:r=25:d=6"),
        ("slow.mkv", "smptebars=s=176x144:r=5:d=5"),
        ("odd.mp4", "mandelbrot=s=322x182:r=30000/1001,trim=duration=4"),
        ("life.mp4", "life=s=64x48:r=10:mold=10:ratio=0.2,trim=duration=7"),
        ("one.mp4", "color=red:s=128x128:r=25:d=0.5"),
        ("b.ts", "testsrc=s=256x144:r=24:d=5"),
        ("fade.avi", "color=blue:s=160x120:r=15:d=5,fade=d=4"),
        ("tall.webm", "testsrc2=s=90x160:r=12:d=4"),
    ]
    return [make(folder / name, graph) for name, graph in sources]


def look_at(model: LoadedModel, clip: Path, seconds: Sequence[float]) -> Tensor:
    """Features of the frames shown at these times, by random access, encoded together."""
    with video.open_source(clip, size=model.transform.decode_size) as opened:
        frames = opened.read(frame_at(opened.pts, np.array(seconds)).tolist())
    return Looker(model).encode(frames)


def compare(captioner: Captioner, clips: Sequence[Path]) -> None:
    model: LoadedModel = captioner.model
    for clip in clips:
        config = LiveConfig(fps=FPS, every=None, memory=MemoryConfig(recent=64))
        live = LiveCaptioner(model, config, SEARCH)
        with open_stream(str(clip), fps=FPS, size=model.transform.decode_size) as stream:
            [cue] = live.watch(stream)
        # By `fps` a clip is looked at in whole ticks; a stream also in one cut short by its end.
        if ends_within_a_tick(clip, cue):
            features = look_at(model, clip, [moment.time for moment in live.memory.recent])
        else:
            [(_, features)] = Looker(model).look(clip, View(fps=FPS))
        streamed = torch.stack([moment.features for moment in live.memory.recent])
        assert torch.equal(streamed, features), clip.name
        [whole] = captioner.caption(captioner.recall(str(clip), Segment(0.0, cue.end), features))
        assert cue.text == whole.text, clip.name
        assert cue.logprob == pytest.approx(whole.logprob, abs=1e-3), clip.name


def ends_within_a_tick(clip: Path, cue: Cue) -> bool:
    """Whether the clip ends before the time that the last frame looked at stands for."""
    with video.open_source(clip, size=(8, 8)) as opened:
        return bool(opened.pts[-1] + opened.durations[-1] < cue.end - 1e-6)


def test_a_tiny_model_says_the_same(model: LoadedModel, tmp_path: Path) -> None:
    compare(Captioner(model), generated(tmp_path)[:6:2])


def test_every_caption_on_the_way_is_that_of_the_clip_so_far(
    model: LoadedModel, tmp_path: Path
) -> None:
    [clip] = generated(tmp_path)[:1]
    live = LiveCaptioner(model, LiveConfig(every=2.0, memory=MemoryConfig(recent=64)), SEARCH)
    with open_stream(str(clip), fps=FPS, size=model.transform.decode_size) as stream:
        cues = list(live.watch(stream))
    wholes: list[Caption] = [
        made for cue in cues for made in Captioner(model).caption(clip, fps=FPS, end=cue.end)
    ]
    assert [cue.end for cue in cues] == [2.0, 4.0, 6.0]
    assert [cue.text for cue in cues] == [whole.text for whole in wholes]


@pytest.mark.slow
@pytest.mark.needs_shared
def test_twenty_clips(tmp_path: Path) -> None:
    """flamvid-base, token by token; features bit for bit."""
    videos = (".mp4", ".mkv", ".avi")
    real = sorted(p for p in (SHARED / "clips").iterdir() if p.suffix in videos)
    clips = [*real, *generated(tmp_path)]
    assert len(clips) >= 20
    compare(load("flamvid-base"), clips)
