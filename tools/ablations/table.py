"""Results as lines of a file, and as a table beside the paper's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from ablations.one import Outcome
from ablations.rows import Row
from flamvid.errors import InputError

__all__ = ["Results", "table", "write_between"]

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"
_HEAD = (
    "| row | seeds | parameters, M (trained) | step, s | loss | CIDEr | distinct "
    "| paper: parameters, B | step, s | overall |\n|---|---|---|---|---|---|---|---|---|---|"
)


class Results:
    """Outcomes of rows by name and seed, each a line of a file as soon as it is there.

    about: all that they depend on. Lines of something else are left alone and not counted.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about = json.loads(json.dumps(about))
        self._found: dict[tuple[str, int], Outcome] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                found = json.loads(line)
            except ValueError:  # the last line of a run that was killed in the midst of it
                continue
            if found["about"] == self.about:
                self._found[found["row"], found["seed"]] = Outcome(**found["outcome"])

    def has(self, row: str, seed: int) -> bool:
        """Whether it is finished."""
        return (row, seed) in self._found

    def add(self, row: str, seed: int, outcome: Outcome) -> None:
        """Keep what came of a row."""
        line = {"row": row, "seed": seed, "outcome": asdict(outcome), "about": self.about}
        with self.path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            torn = file.tell() > 0 and self.path.read_bytes()[-1:] != b"\n"
            file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[row, seed] = outcome

    def of(self, row: str) -> list[Outcome]:
        """One outcome for each seed that is finished."""
        return [outcome for (name, _), outcome in self._found.items() if name == row]


def table(rows: Sequence[Row], results: Results) -> str:
    """Markdown: means over the seeds that are there, beside the paper's columns."""
    lines = [_HEAD]
    for row in rows:
        found, paper = results.of(row.name), row.paper
        theirs = [f"{paper.billions}", _number(paper.seconds, 2), _number(paper.overall, 1)]
        ours = ["0", "", "", "", "", ""]
        if found:
            sizes = f"{found[0].parameters / 1e6:.1f} ({found[0].trained / 1e6:.1f})"
            scores = [x.cider for x in found if x.cider is not None]
            ours = [
                str(len(found)),
                sizes,
                _number(mean(x.step_seconds for x in found), 2),
                _number(mean(x.loss for x in found), 3),
                _number(mean(scores) if scores else None, 1),
                _number(mean(x.distinct for x in found), 0),
            ]
        lines.append(f"| {' | '.join([row.name, *ours, *theirs])} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    old = path.read_text(encoding="utf-8")
    before, begin, rest = old.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise InputError(f"{path} has no lines {_BEGIN} and {_END}; put them where the table goes")
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    part.replace(path)
