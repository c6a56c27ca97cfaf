"""docs/cli.md tells of every command and every option that there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from flamvid.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words), command
    for name, sub in (inner or {}).items():
        yield from commands(sub, (*words, name))


def test_every_option_is_there() -> None:
    """Else: python tools/make_cli_docs.py."""
    sections = {
        part.split("\n", 1)[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")
    }
    for name, command in commands(get_command(app)):
        wanted = {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        missing = sorted(option for option in wanted if option not in sections.get(name, ""))
        assert name in sections, name
        assert not missing, (name, missing)
