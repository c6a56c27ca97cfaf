"""The installed command with the model that ships, on real clips."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

CLIPS = Path(__file__).parents[3] / "shared" / "clips"
FLAMVID = Path(sys.executable).with_name("flamvid")
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
TIMED = ("caption", CLIPS / "videofeatures_v_GGSY1Qvo990.mp4", "--every", "5", "--window", "10")

# What is in the clip (clips.json), in the words that captions have for it.
SHOWN = {
    "aa_playing_guitar.mp4": "guitar",
    "cve_vid1.mp4": "bears?",
    "decord_flipping_a_pancake.mkv": "cook|cooking|kitchen|pan|pancake",
    "mmaction2_demo.mp4": "arms?|wrestl(e|ing)",
    "mmaction2_structuralize.mp4": "basketball|gym",
    "msvd_WTf5EgVY5uU_124_128.avi": "cook|cooking|kitchen|pan|wok",
    "msvd_klteYv1Uv9A_27_33.avi": "motorcycle|motorbike|bike",
    "sam2_01_dog.mp4": "dogs?",
    "sam2_05_default_juggle.mp4": "soccer|football|ball",
    "torchcodec_nasa_13013.mp4": "space|spaceship|ship|station|rocket",
    "videofeatures_v_GGSY1Qvo990.mp4": "weights?|barbell|lifting|exercis(e|es|ing)|workout",
    "vllama_skateboarding_dog.mp4": "dogs?|skateboards?|skateboarding",
}

pytestmark = pytest.mark.needs_shared


def flamvid(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FLAMVID, *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_every_clip_is_captioned_in_one_run_and_most_name_what_is_there() -> None:
    done = flamvid("caption", *(CLIPS / name for name in SHOWN), "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(c["source"]).name for c in made] == list(SHOWN)
    for caption in made:
        assert {"source", "start", "end", "text", "logprob", "model"} == caption.keys()
        assert caption["model"] == "flamvid-base"
        assert caption["start"] == 0
        assert 3 <= len(caption["text"].split()) <= 20, caption
    texts = {Path(c["source"]).name: c["text"] for c in made}
    named = [n for n, text in texts.items() if re.search(rf"\b({SHOWN[n]})\b", text)]
    assert len(named) > len(texts) / 2, texts
    assert len(set(texts.values())) >= 8, texts  # no stock sentence for everything


@pytest.fixture(scope="module")
def timed() -> list[dict[str, Any]]:
    """Captions of ten seconds each, every five seconds."""
    done = flamvid(*TIMED, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_timed_captions_are_subtitles_to_ffmpeg(
    timed: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    assert [c["start"] for c in timed] == [0, 5, 10]
    assert [round(c["end"]) for c in timed] == [10, 15, 18]
    file = tmp_path / f"out.{kind}"
    done = flamvid(*TIMED, "--format", kind, "--output", file)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    # ffmpeg reads it without complaint, and finds the same words at the same times.
    read = [FFMPEG, "-loglevel", "warning", "-i", file, "-f", "srt", "-"]
    parsed = subprocess.run(read, capture_output=True, text=True, check=True)
    assert parsed.stderr == ""
    times = r"(\d+):(\d+):([\d,]+) --> (\d+):(\d+):([\d,]+)\n(.*)\n"
    cues = re.findall(times, parsed.stdout)
    assert len(cues) == len(timed)
    for (*clock, text), made in zip(cues, timed, strict=True):
        h, m, s, to_h, to_m, to_s = (float(part.replace(",", ".")) for part in clock)
        assert h * 3600 + m * 60 + s == pytest.approx(made["start"], abs=2e-3)
        assert to_h * 3600 + to_m * 60 + to_s == pytest.approx(made["end"], abs=2e-3)
        assert text == made["text"]
