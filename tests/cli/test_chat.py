"""`flamvid chat` and `--shots`: what lines do, and what bad ones say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flamvid.cli.main import app


def chat(*lines: str, flags: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(app, ["chat", *flags], input="".join(f"{x}\n" for x in lines))


def test_lines_show_and_ask(fake: Any) -> None:
    result = chat("/image a.png", "how many?", '/video "b c.mp4" 2 5.5', "", "and now?", "/quit")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "two dogs\ntwo dogs\n", "")
    assert [name for name, _ in fake.calls] == ["chat", "a.png", "how many?", "b c.mp4", "and now?"]
    assert fake.calls[3][1] == {"start": 2.0, "end": 5.5}
    assert fake.calls[0][1]["beams"] == 1


def test_paths_with_spaces_need_no_quotes(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("it's my cat.png", "b c.mp4", "d 1 2"):
        (tmp_path / name).touch()
    result = chat(
        "/image it's my cat.png", "/video b c.mp4", "/video b c.mp4 2 5.5", "/video d 1 2"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    whole, part = {"start": None, "end": None}, {"start": 2.0, "end": 5.5}
    assert fake.calls[1:] == [
        ("it's my cat.png", whole),
        ("b c.mp4", whole),
        ("b c.mp4", part),
        ("d 1 2", whole),
    ]


def test_beams_answer_at_once(fake: Any) -> None:
    result = chat("how many?", flags=("--beams", "3"))
    assert result.stdout == "two dogs\n"
    assert fake.calls[0][1]["beams"] == 3


def test_a_bad_line_is_one_line_and_the_conversation_goes_on(fake: Any) -> None:
    result = chat(
        "/image",
        "/vdeo a.mp4",
        "/video a.mp4 1",
        "/video a.mp4 x 2",
        '/image "a',
        "/image broken.mp4",
        "ok?",
    )
    assert result.exit_code == 0
    assert result.stdout == "two dogs\n"
    lines = result.stderr.splitlines()
    assert len(lines) == 6
    assert lines[0] == "flamvid: '/image' is no command; /help lists them"
    assert lines[3] == "flamvid: 'x' is no time; give seconds, as in /video a.mp4 2 5.5"
    assert "mind the quotes" in lines[4]
    assert "broken.mp4 is truncated" in lines[5]


def test_turns_that_are_left_out_are_told_once(fake: Any) -> None:
    result = chat("first?", "again?", "and again?")
    assert result.stdout == "two dogs\n" * 3
    line = "flamvid: the oldest turns are left out: the language model has no more room\n"
    assert result.stderr == line


def test_help_and_forget(fake: Any) -> None:
    result = chat("/help", "/forget")
    assert "/video PATH" in result.stderr
    assert fake.calls[-1][0] == "forget"


def test_shots_reach_the_captioner(run: Any, fake: Any, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"source": "a.mp4", "text": "x", "question": "q"}')
    assert run("caption", "a.mp4", "b.mp4", "--shots", "s.jsonl").exit_code == 0
    shots = [keywords["shots"] for _, keywords in fake.calls if "shots" in keywords]
    assert [len(given) for given in shots] == [1, 1]
    assert run("ask", "a.mp4", "why?", "--shots", "s.jsonl").exit_code == 0
    assert fake.calls[-1][1]["shots"][0].question == "q"


@pytest.mark.parametrize("verb", [("caption", "a.mp4"), ("ask", "a.mp4", "why?")])
@pytest.mark.parametrize(("flag", "looked"), [("--frames=3", (3, None)), ("--fps=2", (None, 2.0))])
def test_shots_are_looked_at_as_what_comes_after(
    run: Any, fake: Any, tmp_path: Path, verb: tuple[str, ...], flag: str, looked: tuple[Any, ...]
) -> None:
    (tmp_path / "s.jsonl").write_text('{"source": "b.mp4", "text": "x", "question": "q"}')
    assert run(*verb, "--shots", "s.jsonl", flag).exit_code == 0
    [keywords] = [keywords for name, keywords in fake.calls if name == "examples"]
    assert (keywords["frames"], keywords["fps"]) == looked


@pytest.mark.parametrize("verb", [("caption", "a.mp4"), ("ask", "a.mp4", "why?")])
def test_bad_shots_are_one_line(run: Any, fake: Any, tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "s.jsonl").write_text("x")
    result = run(*verb, "--shots", "s.jsonl")
    assert result.exit_code == 2
    assert "s.jsonl, line 1 is no JSON" in result.stderr
    assert not fake.calls


def test_bytes_that_are_no_text_do_not_end_it(fake: Any) -> None:
    result = CliRunner().invoke(app, ["chat"], input=b"caf\xe9?\nmore?\n")
    assert (result.exit_code, result.stdout) == (0, "two dogs\ntwo dogs\n")
    assert fake.calls[1][0] == "caf\ufffd?"
