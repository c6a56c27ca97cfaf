"""Slice types by their bits, against what ffmpeg says of each frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamvid.video.av_file import open_container
from flamvid.video.slices import in_order, length_bytes

B_PICTURE = 3  # AV_PICTURE_TYPE_B


@pytest.mark.parametrize("name", ["a.ts", "a.mp4"])  # start codes, lengths
@pytest.mark.parametrize("more", ["", ":slices=4", ":cabac=0", ":aud=1"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_b_pictures_are_found(make_clip, name: str, b_frames: int, more: str) -> None:
    options = ("-bf", str(b_frames), "-x264-params", f"b-adapt=0{more}")
    clip: Path = make_clip(name, *options, size="320x192")
    with open_container(str(clip)) as container:
        stream = container.streams.video[0]
        lengths = length_bytes(stream.codec_context.extradata or b"")
        assert lengths == (4 if name == "a.mp4" else 0)
        packets = [p for p in container.demux(stream) if p.size]
        told = {p.pts for p in packets if not in_order(memoryview(p), lengths)}
        container.seek(0)
        truth = {f.pts for f in container.decode(stream) if f.pict_type == B_PICTURE}
    assert told == truth
    assert bool(truth) == bool(b_frames)


@pytest.mark.parametrize("lengths", [0, 4])
@pytest.mark.parametrize(
    "packet",
    [b"", b"\0\0\1", b"\0\0\0\x20\x41", b"\0\0\1\x41\x0c", b"\0\0\0\2\x41\x0c", b"\0" * 9],
)
def test_what_can_not_be_told_counts_as_reordered(packet: bytes, lengths: int) -> None:
    assert not in_order(packet, lengths)
