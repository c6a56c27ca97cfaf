"""A recipe's TOML, and what the command line changes in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flamvid import config
from flamvid.errors import InputError

__all__ = ["differing", "read_changed"]


def read_changed(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The table of a recipe; `changes` are `key=value`, such as `optim.warmup=100` or `seed=1`.

    A corpus is changed by its name, `corpus.pages.weight=0.5`, and all of them by `corpus.*`.
    """
    table = config.read_toml(path)
    for change in changes:
        _change(table, change)
    return table


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ in two whole recipes; of corpora the kind, `corpus`, alone.

    Where data lie is no difference, nor is a key that one lacks, as those of an older version do.
    """
    found = []
    for key in one.keys() & other.keys() - {"root"}:
        mine, theirs = one[key], other[key]
        if isinstance(mine, dict) and isinstance(theirs, dict):
            found += [f"{key}.{name}" for name in differing(mine, theirs)]
        elif mine != theirs:
            found.append(key)
    return sorted(found)


def _change(table: dict[str, Any], change: str) -> None:
    key, found, text = change.partition("=")
    *parents, last = key.strip().split(".")
    if not found or not last:
        raise InputError(f"--set is {change!r}; must be table.key=value, as optim.warmup=100")
    if parents and parents[0] in ("corpus", "validation"):
        tables = table.get(parents[0], [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise InputError(f"--set {change}: {parents[0]} must be tables, [[{parents[0]}]]")
        called = ".".join(parents[1:])  # a name may have dots
        places = [t for t in tables if called in ("*", t.get("name"))]
        if not places:
            names = ", ".join(str(t.get("name")) for t in tables)
            raise InputError(f"--set {change}: no {parents[0]} is so called; there are {names}")
    else:
        places = [table]
        for name in parents:
            places = [places[0].setdefault(name, {})]
            if not isinstance(places[0], dict):
                raise InputError(f"--set {change}: {name} is no table of the recipe")
    for place in places:
        place[last] = _value(text.strip())


def _value(text: str) -> Any:
    """A value as TOML has it, or plain text."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
