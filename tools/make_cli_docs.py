"""Write docs/cli.md: what the `--help` of every command says.

    python tools/make_cli_docs.py [--check]

`--check` writes nothing and fails where the file is not what it would be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from flamvid.cli.main import app

OUT = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = "# Commands\nMade by `python tools/make_cli_docs.py` of each command's `--help`.\n"


def document() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(words) for words in _commands(get_command(app), ()))])


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words
    for name, sub in (inner or {}).items():
        yield from _commands(sub, (*words, name))


def _section(words: tuple[str, ...]) -> str:
    env = {"COLUMNS": "100", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    said = CliRunner().invoke(app, [*words, "--help"], prog_name="flamvid", env=env).output
    lines = "\n".join(line.rstrip() for line in said.strip().splitlines())
    return f"## {' '.join(words)}\n```\n{lines}\n```\n"


def main() -> int:
    text = document()
    if "--check" in sys.argv[1:]:
        same = OUT.is_file() and OUT.read_text(encoding="utf-8") == text
        print(f"{OUT} is {'up to date' if same else 'out of date: python tools/make_cli_docs.py'}")
        return 0 if same else 1
    OUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
