"""Few-shot examples from a file of JSON lines."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamvid.errors import InputError

__all__ = ["Shot", "read_shots"]

_KEYS = {"source", "text", "question", "start", "end"}


@dataclass(frozen=True, slots=True)
class Shot:
    """A source, or a part of it in seconds, and what is to be said of it.

    text: its caption, or the answer to `question`.
    """

    source: str
    text: str
    question: str = ""
    start: float | None = None
    end: float | None = None


def read_shots(path: Path, questions: bool) -> list[Shot]:
    """Shots of a file with one JSON object a line: `source`, `text`, and `question` if asked for.

    `start` and `end` choose a part. Relative sources are taken from the file's folder. A line that
    is none is an InputError that names it.
    """
    try:
        # Of what splitlines() splits at, JSON's texts may hold all but these line feeds.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text; give a file of JSON lines") from error
    shots = [
        _shot(line, f"{path}, line {number}", path.parent, questions)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not shots:
        raise InputError(f"{path} holds no shots; give a JSON object in each line")
    return shots


def _shot(line: str, where: str, folder: Path, questions: bool) -> Shot:
    wanted = ["source", "text", *(["question"] if questions else [])]
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"{where} is no JSON; it must be an object with {_listed(wanted)}"
        ) from error
    if not isinstance(row, dict) or not row.keys() <= _KEYS:
        odd = sorted(row.keys() - _KEYS) if isinstance(row, dict) else row
        raise InputError(f"{where} has {odd!r}; its keys may be {_listed(sorted(_KEYS))}")
    for key in wanted:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise InputError(f"{where}: {key} is {row.get(key)!r}; must be a text")
    start, end = (_seconds(row.get(key), f"{where}: {key}") for key in ("start", "end"))
    source = row["source"]
    if "://" not in source and not source.startswith("cam:"):
        source = str(folder / source)
    return Shot(source, row["text"], row["question"] if questions else "", start, end)


def _seconds(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"{where} is {value!r}; must be seconds, at least 0")
    return float(value)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
