"""`flamvid frames` and `flamvid probe` on real clips."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flamvid.cli.main import app


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """Three seconds in which the grey level of frame n is 16 + 3 n."""

    def make(name: str = "a.mp4") -> Path:
        graph = "color=black:s=64x48:r=25:d=3,format=gray,geq=lum=16+3*N"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
        command += ["-i", graph, "-pix_fmt", "yuv420p", str(tmp_path / name)]
        subprocess.run(command, check=True)
        return tmp_path / name

    return make


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def number(path: Path) -> int:
    return round((float(np.asarray(Image.open(path)).mean()) - 16) / 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_frames_at_times_in_the_order_asked(clip: Any, tmp_path: Path, name: str) -> None:
    result = run("frames", clip(name), "--at", "2,0.5,0.5,0", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/frames.jsonl").read_text().splitlines()]
    names = ["00001_2.000.png", "00002_0.500.png", "00003_0.500.png", "00004_0.000.png"]
    assert [row["file"] for row in rows] == names
    assert [number(tmp_path / "out" / n) for n in names] == [50, 12, 12, 0]
    np.testing.assert_allclose([row["pts"] for row in rows], [2.0, 0.48, 0.48, 0.0], atol=2e-3)
    np.testing.assert_allclose([row["duration"] for row in rows], 0.04, atol=2e-3)


def test_frames_by_rate_and_by_number(clip: Any, tmp_path: Path) -> None:
    path = clip()
    assert run("frames", path, "--fps", 2, "-o", tmp_path / "rate").exit_code == 0
    found = sorted((tmp_path / "rate").glob("*.png"))
    assert [number(f) for f in found] == [6, 18, 31, 43, 56, 68]
    assert run("frames", path, "--frames", 3, "-o", tmp_path / "count").exit_code == 0
    assert len(list((tmp_path / "count").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--at 1,x", "--at is '1,x'"),
        ("--at -1", "must be seconds from 0 on"),
        ("--at 9", "time 9 s must be in [0, 3.000)"),
        ("--at 1 --fps 2", "exclude each other"),
        ("--frames 0", "--frames is 0"),
    ],
)
def test_wrong_times_are_one_line(clip: Any, tmp_path: Path, flags: str, says: str) -> None:
    result = run("frames", clip(), "-o", tmp_path / "out", *flags.split())
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written(clip: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("frames", clip(), "-o", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "can't write to" in result.stderr


def test_probe_says_what_and_how(clip: Any) -> None:
    result = run("probe", clip(), "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (facts["width"], facts["height"], facts["frames"]) == (64, 48, 75)
    assert facts["duration"] == pytest.approx(3.0)
    assert facts["decoder"] == "av"
    assert run("probe", clip("a.ts")).stdout.count("random access in mpegts") == 1


def test_verify_finds_a_decoder_that_lies(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip()
    sound = run("probe", "--verify", path)
    assert (sound.exit_code, "16 frames, all right" in sound.stdout) == (0, True)

    from flamvid.video.isolated_file import IsolatedFile

    honest = IsolatedFile.read
    late = lambda self, indices: honest(self, [min(i + 1, 74) for i in indices])  # noqa: E731
    monkeypatch.setattr(IsolatedFile, "read", late)
    lied = run("probe", "--verify", path)
    assert lied.exit_code == 1
    assert "another picture" in lied.stderr


def test_probe_of_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video at all")
    result = run("probe", tmp_path / "a.mp4")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
