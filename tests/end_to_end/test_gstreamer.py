"""Watching GStreamer's RTSP server, which is not ours; it is here where Debian's package is."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from flamvid.video.live import open_live
from tests.end_to_end.live_command import LiveCommand
from tests.tiny import make_model
from tests.video.live_tools import DEBIANS_PYTHON, camera
from tests.video.media_server import free_port
from tests.video.numbered import BARS, HEIGHT, WIDTH, bars, ffmpeg

RATE, SECONDS = 25, 30


@pytest.fixture(scope="module", autouse=True)
def _gstreamer() -> None:
    wanted = "import gi; gi.require_version('GstRtspServer', '1.0')"
    try:
        found = subprocess.run([DEBIANS_PYTHON, "-c", wanted], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        pytest.skip("GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0)")


@pytest.fixture(scope="module")
def cam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered frames, with B-frames."""
    path = tmp_path_factory.mktemp("clips") / "cam.mp4"
    picture = f"color=black:s={WIDTH}x{HEIGHT}:r={RATE}:d={SECONDS},{BARS}"
    encoder = ("-c:v", "libx264", "-g", "25", "-bf", "3", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", picture, *encoder, path)
    return path


def test_every_frame_in_its_place(cam: Path) -> None:
    with camera(cam) as (_, url), open_live(url, timeout=5) as live:
        frames = list(itertools.islice(live.frames(), 60))
    pts = [float(frame.pts_seconds[0]) for frame in frames]
    assert bars(np.stack([frame.pixels[0, 0].numpy() for frame in frames])) == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / RATE, atol=1e-3)


def test_killed_and_restarted(cam: Path, tmp_path: Path) -> None:
    port = free_port()
    model = make_model(tmp_path)
    told = ("--fps=4", "--every=500ms", "--timeout=2s")
    with camera(cam, port) as (server, url), LiveCommand(tmp_path, model, url, *told) as live:
        live.until_captions(3)
        server.kill()
        server.wait()
        time.sleep(0.5)
        with camera(cam, port):
            live.until_gap()
            live.until_captions(3)
            assert live.end(signal.SIGINT) == 130
        first, *_, last = live.cues
        # The clock of the stream goes as the one on the wall does.
        assert last["end"] - first["end"] == pytest.approx(last["wall"] - first["wall"], abs=3.0)
        assert len(live.gaps) == 1
    json.loads(live.jsonl.read_text().splitlines()[-1])
