"""Formats: valid for others' readers, and lossless where they promise to be."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamvid.cli.failure import OutputError
from flamvid.cli.output import Format, Output, encoder, format_for, open_output
from flamvid.errors import FlamvidError, InputError
from flamvid.types import Caption

SECONDS = st.floats(0, 2e6, allow_nan=False)
CAPTIONS = st.lists(st.tuples(SECONDS, SECONDS, st.text()), max_size=8).map(
    lambda rows: [made(*row) for row in rows]
)
CUE = re.compile(
    r"(\d+)\n(\d{2,}):(\d\d):(\d\d)[,.](\d{3}) --> (\d{2,}):(\d\d):(\d\d)[,.](\d{3})\n([^\n]+)\n\n"
)


def made(start: float, end: float, text: str, source: str = "a.mp4") -> Caption:
    return Caption(source=source, start=start, end=end, text=text, logprob=-1.25, model="m")


def interrupted_after_one(out: Output) -> None:
    out.write(made(0, 1, "one"))
    raise KeyboardInterrupt


def encode(kind: Format, captions: list[Caption], **options: bool) -> str:
    encoding = encoder(kind, **options)
    return "".join(map(encoding.encode, captions)) + encoding.close()


@pytest.mark.parametrize(("kind", "head"), [(Format.srt, ""), (Format.vtt, "WEBVTT\n\n")])
@given(captions=CAPTIONS)
def test_cues_are_numbered_ordered_and_whole(
    kind: Format, head: str, captions: list[Caption]
) -> None:
    text = encode(kind, captions)
    if not text:  # SubRip without cues is an empty file
        return
    assert text.startswith(head)
    cues = list(CUE.finditer(text, len(head)))
    assert "".join(cue.group() for cue in cues) == text[len(head) :]  # nothing but cues
    assert [int(cue[1]) for cue in cues] == list(range(1, len(cues) + 1))
    latest = 0
    for cue in cues:
        numbers = [int(cue[i]) for i in range(2, 10)]
        start, end = (
            ((h * 60 + m) * 60 + s) * 1000 + ms for h, m, s, ms in (numbers[:4], numbers[4:])
        )
        assert latest <= start < end
        assert "-->" not in cue[10]
        latest = start


@given(captions=CAPTIONS)
def test_json_reads_back(captions: list[Caption]) -> None:
    rows = json.loads(encode(Format.json, captions))
    lines = encode(Format.jsonl, captions).split("\n")[:-1]
    assert rows == [json.loads(line) for line in lines]
    for row, caption in zip(rows, captions, strict=True):
        assert list(row) == ["source", "start", "end", "text", "logprob", "model"]
        assert (row["start"], row["text"]) == (caption.start, caption.text)


@pytest.mark.parametrize("kind", [Format.srt, Format.vtt])
def test_ffmpeg_reads_every_cue(kind: Format, tmp_path: Path) -> None:
    captions = [made(5.0 * i, 5.0 * i + 10, f"{i} <b>dogs</b> & --> cats") for i in range(4)]
    captions.append(made(100 * 3600 + 0.5, 100 * 3600, "late, and without a length"))
    source = tmp_path / f"a.{kind}"
    source.write_text(encode(kind, captions), encoding="utf-8")
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    command = [ffmpeg, "-v", "warning", "-i", str(source), "-f", "srt", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^\d+:\d\d:\d\d,\d{3} --> ", done.stdout, re.MULTILINE)) == 5
    assert "dogs" in done.stdout
    assert "100:00:00,500 --> 100:00:00,600" in done.stdout


def test_vtt_escapes_what_a_browser_would_take_for_markup() -> None:
    text = encode(Format.vtt, [made(0, 1.5, "a <b> & c --> d")])
    assert text == ("WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.500\na &lt;b&gt; &amp; c --&gt; d\n\n")
    assert encode(Format.vtt, []) == "WEBVTT\n\n"


def test_text_says_as_much_as_is_needed() -> None:
    one = made(5, 10, "a dog\n\x1b[31mruns")
    assert encode(Format.text, [one]) == "a dog [31mruns\n"
    assert encode(Format.text, [one], many=True) == "a.mp4: a dog [31mruns\n"
    assert encode(Format.text, [one], timed=True) == "0:00:05.000-0:00:10.000 a dog [31mruns\n"


def test_the_name_chooses_the_format() -> None:
    assert format_for(Format, None, None) is Format.text
    assert format_for(Format, None, Path("a.VTT")) is Format.vtt
    assert format_for(Format, None, Path("a.mp4.txt")) is Format.text
    assert format_for(Format, None, Path("/dev/stdout")) is Format.text
    assert format_for(Format, Format.json, Path("a.vtt")) is Format.json
    assert format_for(Format, Format.text, Path("a.csv")) is Format.text
    with pytest.raises(
        InputError, match=r"a\.csv .* in \.json, \.jsonl, \.srt, \.vtt or \.txt, or"
    ):
        format_for(Format, None, Path("a.csv"))


def test_a_file_appears_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    target.chmod(0o640)
    with open_output(encoder(Format.text), target) as out:
        out.write(made(0, 1, "new"))
        assert target.read_text() == "old"
    assert target.read_text() == "new\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [target]


def test_without_a_caption_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(KeyError), open_output(encoder(Format.json), target):
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with open_output(encoder(Format.text), link) as out:
        out.write(made(0, 1, "new"))
    assert link.is_symlink()
    assert real.read_text() == "new\n"


def test_an_interrupt_keeps_what_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt), open_output(encoder(Format.json), target) as out:
        interrupted_after_one(out)
    assert [row["text"] for row in json.loads(target.read_text())] == ["one"]


def test_a_full_device_is_one_clear_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with (
        pytest.raises(OutputError, match=r"can't write to /dev/full \(No space left"),
        open_output(encoder(Format.text), Path("/dev/full")) as out,
    ):
        out.write(made(0, 1, "one"))


def test_bytes_that_are_no_utf8_survive_json(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with open_output(encoder(Format.jsonl), target) as out:
        out.write(made(0, 1, "ein Hund läuft", source="a\udcff.mp4"))
    line = target.read_text(encoding="utf-8")
    assert "läuft" in line
    assert json.loads(line)["source"] == "a\udcff.mp4"


def test_a_time_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(FlamvidError, match="end inf; must be finite"),
        open_output(encoder(Format.json), tmp_path / "x") as out,
    ):
        out.write(made(0, float("inf"), "x"))
