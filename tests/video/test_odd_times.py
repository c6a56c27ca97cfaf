"""Times that containers get wrong: what is shown, and when, is still what ffmpeg shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flamvid import video
from tests.video.numbered import BARS, FRAMES, HEIGHT, WIDTH, bars, ffmpeg, truth

ODD = {
    "negative": "pts=PTS-1/TB:dts=DTS-1/TB",
    "late": "pts=PTS+3600/TB:dts=DTS+3600/TB",
    "two frames at one time": "pts=if(eq(N\\,20)\\,PTS-0.04/TB\\,PTS):dts=DTS-0.2/TB",
    "a gap": "pts=if(gt(N\\,30)\\,PTS+5/TB\\,PTS):dts=if(gt(N\\,30)\\,DTS+5/TB\\,DTS)",
    "uneven": "pts=PTS+if(mod(N\\,3)\\,0\\,0.01/TB)",
    # 33 bits at 90 kHz turn over after 26.5 hours; here in the middle of the clip.
    "a turn of the clock": "pts=PTS+95442.5/TB:dts=DTS+95442.5/TB",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "mov"])
def test_odd_times(tmp_path: Path, odd: str, container: str) -> None:
    graph = f"color=s={WIDTH}x{HEIGHT}:r=25:d={FRAMES / 25},format=yuv420p,{BARS}"
    plain, clip = tmp_path / "plain.mkv", tmp_path / f"clip.{container}"
    ffmpeg("-f", "lavfi", "-i", graph, "-c:v", "libx264", "-bf", "0", "-g", "25", plain)
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", f"setts={ODD[odd]}", "-copyts", clip)
    pts, numbers = truth(clip)
    with video.open(clip) as source:
        assert len(source.pts) == len(pts), source.reason
        np.testing.assert_allclose(source.pts, pts, atol=2e-3)
        at = np.random.default_rng(0).permutation(len(pts))[:20].tolist()
        found = bars(source.read(at).pixels.float().mean(1).numpy())
    assert found == [numbers[i] for i in at], source.reason
