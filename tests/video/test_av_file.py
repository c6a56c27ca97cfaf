"""PyAV's reader by itself: what it leaves out, and what it does where that was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flamvid.errors import DecodeError
from flamvid.video import av_file
from flamvid.video.av_file import AvFile, open_container
from flamvid.video.av_run import Run

B_FRAMES = ("-bf", "5", "-x264-params", "b-pyramid=normal:b-adapt=0")


@pytest.fixture
def clip(make_clip) -> Path:
    return make_clip("b.mp4", *B_FRAMES)


def read(path: Path, places: list[int]) -> list[tuple[int, Any]]:
    with open_container(str(path)) as container:
        return list(AvFile(container, 0, None).read(places))


class Counting:
    """A codec context that says how many packets were to be decoded in full."""

    def __init__(self, context: Any) -> None:
        self.context, self.full, self.skip_frame = context, 0, "DEFAULT"

    def decode(self, packet: Any) -> Any:
        self.context.skip_frame = self.skip_frame
        self.full += packet is not None and self.skip_frame == "DEFAULT"
        return self.context.decode(packet)


def test_frames_that_nothing_needs_are_left_out(clip: Path) -> None:
    with open_container(str(clip)) as container:
        stream = container.streams.video[0]
        every = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
        container.seek(0)
        packets = list(container.demux(stream))
        counting = Counting(stream.codec_context)
        wanted = sorted(p.pts for p in packets if p.size)[20]
        [frame] = Run(counting, packets, skip=True).frames([wanted], go_on=False)
        np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), every[20])
        assert counting.full == 1


def test_where_leaving_out_loses_frames_all_are_decoded(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(clip, [3, 4, 5])
    tried: list[bool] = []

    class Losing(Run):
        def __init__(self, context: Any, packets: Any, *, skip: bool) -> None:
            super().__init__(context, packets, skip=skip)
            tried.append(skip)

        def frames(self, ticks: Any, *, go_on: bool) -> Iterator[Any]:
            found = list(super().frames(ticks, go_on=go_on))
            yield from found[:1] if self._skip else found

    monkeypatch.setattr(av_file, "Run", Losing)
    found = read(clip, [3, 4, 5])
    assert tried == [True, False]
    for (at, pixels), (place, wanted) in zip(found, expected, strict=True):
        assert at == place
        np.testing.assert_array_equal(pixels, wanted)


def test_a_frame_that_never_comes_is_an_error(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "frames", lambda *_, **__: iter(()))
    with pytest.raises(DecodeError, match=r"shows no frame at 0\.120 s"):
        read(clip, [3])


def test_only_codecs_whose_decoder_knows(make_clip) -> None:
    clip = make_clip("b4.mp4", "-c:v", "mpeg4", "-bf", "2")
    with open_container(str(clip)) as container:
        assert not AvFile(container, 0, None)._skips
