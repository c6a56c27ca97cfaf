"""Shots from a file: what is read, and what is said of a line that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamvid.errors import InputError
from flamvid.text.shots import Shot, read_shots


def write(folder: Path, text: str) -> Path:
    path = folder / "shots.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_sources_are_found_from_the_files_folder(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"source": "a.mp4", "text": "a dog", "start": 1, "end": 2.5}\n\n'
        '{"source": "https://x/b.mp4", "text": "ein Hündchen"}\n',
    )
    assert read_shots(path, questions=False) == [
        Shot(str(tmp_path / "a.mp4"), "a dog", "", 1.0, 2.5),
        Shot("https://x/b.mp4", "ein Hündchen"),
    ]
    absolute = write(tmp_path, '{"source": "/a.mp4", "text": "two", "question": "how many?"}')
    assert read_shots(absolute, questions=True) == [Shot("/a.mp4", "two", "how many?")]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    written = json.dumps({"source": "/a.mp4", "text": text}, ensure_ascii=False)
    path = write(tmp_path, f"\ufeff{written}\r\n{written}\r\n")
    assert read_shots(path, questions=False) == [Shot("/a.mp4", text)] * 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no shots"),
        ("a dog", r"shots\.jsonl, line 1 is no JSON; it must be an object with source, text and"),
        ('["a"]', "line 1 has .* its keys may be"),
        ('{"source": "a", "text": "b", "answer": "c"}', "line 1 has .'answer'.; its keys may be"),
        ('\n{"source": "a", "text": " "}', "line 2: text is ' '; must be a text"),
        ('{"source": "a", "text": "b"}', "line 1: question is None; must be a text"),
        ('{"source": "a", "text": "b", "question": "c", "start": -1}', "start is -1; must be sec"),
        ('{"source": "a", "text": "b", "question": "c", "end": true}', "end is True; must be sec"),
    ],
)
def test_what_is_no_shot_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        read_shots(write(tmp_path, text), questions=True)
    assert "\n" not in str(raised.value)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read as text"):
        read_shots(tmp_path / "nope.jsonl", questions=False)
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="can't be read as text"):
        read_shots(tmp_path / "x.jsonl", questions=False)
