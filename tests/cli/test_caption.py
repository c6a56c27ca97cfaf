"""`flamvid caption` and `flamvid ask`: what is printed, what fails, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_one_source_is_only_its_sentence(run: Any, fake: Any) -> None:
    result = run("caption", "a.mp4")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a dog runs\n", "")
    keywords = fake.calls[0][1]
    assert (keywords["beams"], keywords["max_tokens"], keywords["frames"]) == (3, 20, None)


def test_flags_reach_the_captioner(run: Any, fake: Any) -> None:
    flags = "--fps 2 --start 1 --end 9 --beams 5 --max-tokens 7 --length-penalty -0.5 --seed 3"
    flags += " --decode-timeout 60 --min-tokens 2 --no-repeat-ngram 3 --returns 4"
    result = run("caption", *flags.split(), "--prompt", "in it", "--every", "2", "a.mp4")
    assert result.exit_code == 0
    assert fake.calls[0][1] == {
        "frames": None,
        "fps": 2.0,
        "start": 1.0,
        "end": 9.0,
        "every": 2.0,
        "window": None,
        "beams": 5,
        "max_tokens": 7,
        "min_tokens": 2,
        "length_penalty": -0.5,
        "no_repeat_ngram": 3,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "returns": 4,
        "seed": 3,
        "prompt": "in it",
        "decode_timeout": 60.0,
    }


def test_timed_captions_say_when(run: Any) -> None:
    lines = run("caption", "a.mp4", "--every", 5, "--window", 10).stdout.splitlines()
    assert lines[1] == "0:00:05.000-0:00:10.000 a dog runs"
    lines = run("caption", "a.mp4", "b.mp4", "--every", 5).stdout.splitlines()
    assert lines[0] == "a.mp4: 0:00:00.000-0:00:05.000 a dog runs"


def test_a_source_that_fails_does_not_take_the_others_along(run: Any) -> None:
    result = run("caption", "a.mp4", "broken.mp4", "nope.mp4", "nan.mp4", "bug.mp4", "b.mp4")
    assert result.exit_code == 1
    assert result.stdout == "a.mp4: a dog runs\nb.mp4: a dog runs\n"
    lines = result.stderr.splitlines()
    assert len(lines) == 4
    assert lines[0] == "flamvid: nope.mp4: no such file or folder; check the path"
    assert lines[1] == "flamvid: broken.mp4 ends in the middle of a frame; it is truncated"
    assert "nan.mp4 has logprob nan" in lines[2]
    assert "bug.mp4: unexpected ZeroDivisionError" in lines[3]


def test_a_folder_is_its_videos_unless_it_holds_frames(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "deep" / "not.png").mkdir(parents=True)
    names = ("clip10.mp4", "clip2.mkv", "notes.txt", "deep/last.webm", ".hidden.mp4", ".thumb.jpg")
    for name in names:
        (folder / name).touch()
    found = [f"{folder}/{name}" for name in ("clip2.mkv", "clip10.mp4", "deep/last.webm")]
    lines = [f"{path}: a dog runs" for path in found]
    result = run("caption", folder)
    assert (result.stdout.splitlines(), result.stderr) == (lines, "")
    assert run("caption", f"{tmp_path}/cli*").stdout.splitlines() == lines
    (folder / "cover.jpg").touch()
    result = run("caption", folder)
    assert result.stdout.splitlines() == lines
    assert "holds pictures beside its videos, which are left out" in result.stderr
    for file in folder.glob("*.m*"):
        file.unlink()
    assert run("caption", folder).stdout == "a dog runs\n"  # a source of frames, as ever
    for file in (folder / "cover.jpg", folder / "deep/last.webm"):
        file.unlink()
    result = run("caption", folder, "--format", "jsonl")
    assert json.loads(result.stdout)["source"] == str(folder)


def test_without_any_source_no_model_is_loaded(run: Any, fake: Any) -> None:
    result = run("caption", "nope.mp4", "*.mkv")
    assert result.exit_code == 1
    assert "*.mkv: no file matches" in result.stderr
    assert fake.loads == []


def test_json_holds_exactly_the_promised_keys(run: Any) -> None:
    (line,) = run("caption", "odd.mp4", "--format", "jsonl").stdout.splitlines()
    assert json.loads(line) == {
        "source": "odd.mp4",
        "start": 0.0,
        "end": 10.0,
        "text": "ein <Hund> läuft & bellt --> laut",
        "logprob": -1.5,
        "model": "fake",
    }
    assert "läuft" in line
    rows = json.loads(run("caption", "a.mp4", "b.mp4", "--format", "json").stdout)
    assert [row["source"] for row in rows] == ["a.mp4", "b.mp4"]
    assert json.loads(run("caption", "broken.mp4", "--format", "json").stdout) == []


def test_subtitles_are_of_one_source(run: Any, fake: Any) -> None:
    result = run("caption", "a.mp4", "b.mp4", "--format", "srt")
    assert result.exit_code == 2
    assert "run once for each" in result.stderr
    assert fake.loads == []
    assert run("caption", "a.mp4", "--every", 5, "--format", "srt").stdout.startswith(
        "1\n00:00:00,"
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--frames 0", "--frames is 0; must be at least 1"),
        ("--fps 0", "--fps is 0; must be above 0"),
        ("--fps nan", "--fps is nan; must be a finite number"),
        ("--every -1", "--every is -1; must be above 0"),
        ("--every 5 --window 0", "--window is 0; must be above 0"),
        ("--window 5", "--window is 5 without --every"),
        ("--beams 0", "--beams is 0; must be at least 1"),
        ("--max-tokens 0", "--max-tokens is 0; must be at least 1"),
        ("--start 5 --end 5", "--end is 5; must be above --start, which is 5"),
        ("--end 0", "--end is 0; must be above --start, which is 0"),
        ("--start -1", "--start is -1; must be at least 0"),
        ("--frames 4 --fps 2", "--frames 4 and --fps 2 exclude each other"),
        ("--temperature 1", "--temperature 1 draws words, which 3 beams do not; give --beams 1"),
        ("--top-k 3", "choose among words drawn at random; give --temperature as well"),
        ("--top-p 0", "--top-p is 0; must be above 0 and at most 1"),
        ("--returns 4", "--returns is 4, but 3 beams end in no more captions"),
        ("--returns 2 -f srt", "srt has one caption for each time, but --returns is 2"),
        ("--min-tokens 30", "--min-tokens is 30; must be at most --max-tokens, which is 20"),
        ("--no-repeat-ngram -1", "--no-repeat-ngram is -1; must be at least 0"),
        ("--temperature -1 --beams 1", "--temperature is -1; must be at least 0"),
        ("--draft", "one text at a time, but --beams is 3; give --beams 1 as well, or leave"),
        ("--draft --beams 1 --temperature 1 --returns 2", "but --returns is 2; give --returns 1"),
        ("--decode-timeout 0", "--decode-timeout is 0; must be above 0"),
        ("--seed -1", "--seed is -1; must be at least 0"),
        ("--length-penalty inf", "--length-penalty is inf; must be a finite number"),
        ("-o none/out.txt", "the folder none does not exist; create it first"),
        ("-o .", "--output is ., a folder"),
        ("-o a.mp4", "--output is a.mp4, which is a source"),
        ("-o a.csv", "a.csv ends in .csv, which is no format; end its name in .json"),
    ],
)
def test_wrong_flags_are_refused_at_the_door(run: Any, fake: Any, flags: str, says: str) -> None:
    result = run("caption", "a.mp4", *flags.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("flamvid: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert fake.loads == []


@pytest.mark.parametrize("flags", ["--format gif", "--frames many", "--nonsense"])
def test_what_typer_refuses_is_usage_too(run: Any, flags: str) -> None:
    assert run("caption", "a.mp4", *flags.split()).exit_code == 2
    assert run("caption").exit_code == 2


def test_errors_of_the_model_come_once(run: Any) -> None:
    result = run("caption", "a.mp4", "b.mp4", "--model", "far", "-o", "out.txt")
    assert result.exit_code == 1
    assert result.stderr == "flamvid: far is not in the cache and FLAMVID_OFFLINE is set\n"
    assert not Path("out.txt").exists()
    assert not list(Path().glob(".out*"))
    assert run("caption", "a.mp4", "--dtype", "int3").exit_code == 2


def test_globs_that_the_shell_left(run: Any, fake: Any) -> None:
    for name in ("c10.mkv", "c2.mkv", "[a].mkv", "in/deep/c1.mkv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    run("caption", "c*.mkv", "[a].mkv", "**/c1.*", "http://host/x?y=*")
    assert [source for source, _ in fake.calls] == [
        "c2.mkv",
        "c10.mkv",
        "[a].mkv",
        "in/deep/c1.mkv",
        "http://host/x?y=*",
    ]


def test_a_file_gets_the_format_of_its_name(run: Any) -> None:
    result = run("caption", "a.mp4", "--every", 5, "-o", "out.vtt")
    assert (result.exit_code, result.stdout) == (0, "")
    assert Path("out.vtt").read_text().startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:05.000\n")


def test_verbose_prints_a_command_that_does_the_same(run: Any, fake: Any) -> None:
    import shlex

    result = run("caption", "a.mp4", "-v", "--frames", 4, "--prompt", "it's", "-o", "x.jsonl")
    command, loaded = result.stderr.splitlines()
    assert loaded.startswith("flamvid: loaded flamvid-base in ")
    before = Path("x.jsonl").read_text()
    Path("x.jsonl").unlink()
    words = shlex.split(command)
    assert words[:2] == ["flamvid", "caption"]
    assert run(*words[1:]).exit_code == 0
    assert Path("x.jsonl").read_text() == before
    assert fake.calls[0] == fake.calls[1]


def test_a_draft_is_asked_for_and_said(run: Any, fake: Any) -> None:
    for verb in (["caption", "a.mp4"], ["ask", "a.mp4", "what?"]):
        result = run(*verb, "-v", "--beams", 1, "--draft")
        assert result.exit_code == 0
        assert " --draft " in result.stderr.splitlines()[0]
        assert " --draft" not in run(*verb, "-v").stderr
    assert fake.loads[::2] == ["flamvid-base, with a draft"] * 2
    assert run("chat", "--draft", "--beams", 2).exit_code == 2


def test_ask_answers(run: Any, fake: Any) -> None:
    result = run("ask", "a.mp4", "how many dogs?", "--frames", 4)
    assert (result.exit_code, result.stdout) == (0, "two\n")
    assert fake.calls[0][1] == {
        "question": "how many dogs?",
        "frames": 4,
        "fps": None,
        "start": None,
        "end": None,
        "beams": 3,
        "max_tokens": 20,
        "min_tokens": 1,
        "length_penalty": 0.0,
        "no_repeat_ngram": 0,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "decode_timeout": None,
    }
    row = json.loads(run("ask", "a.mp4", "how many?", "--format", "json").stdout)
    assert list(row) == ["source", "start", "end", "text", "logprob", "model"]


def test_ask_refuses_in_one_line(run: Any) -> None:
    assert run("ask", "a.mp4", " ").exit_code == 2
    assert run("ask", "a.mp4", "why?", "--beams", 0).exit_code == 2
    result = run("ask", "broken.mp4", "why?")
    assert (result.exit_code, result.stderr) == (1, "flamvid: broken.mp4 is truncated\n")
    assert run("ask", "nope.mp4", "why?").exit_code == 1


def test_each_of_several_sources_is_asked(run: Any) -> None:
    result = run("ask", "*.mp4", "why?")
    assert result.exit_code == 1
    names = [line.partition(": ")[0] for line in result.stdout.splitlines()]
    assert names == ["a.mp4", "b.mp4", "bug.mp4", "nan.mp4", "odd.mp4"]
    assert result.stderr == "flamvid: broken.mp4 is truncated\n"
