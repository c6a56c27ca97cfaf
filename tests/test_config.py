"""Tables to dataclasses: what does not fit is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flamvid.config import build, read_toml, to_toml
from flamvid.data.corpus import CorpusConfig
from flamvid.errors import ConfigError
from flamvid.train.plan import RunConfig


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({}, "^r.toml: corpus 0 lacks name, kind, sources; add what is missing$"),
        ({"name": "a", "kind": "images"}, "lacks sources;"),
        ({"nmae": "a"}, "has no key 'nmae'; did you mean 'name'"),
    ],
)
def test_what_is_missing_or_unknown_is_named(table: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(CorpusConfig, table, "r.toml: corpus 0")


def test_toml_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = {"a": 1, "b": [1.5, "x"], "c d": {"d": True, "e": {"f": 'q"\n'}}, "g": [{"h": 1}]}
    (tmp_path / "x.toml").write_text(to_toml({**table, "none": None}))
    assert read_toml(tmp_path / "x.toml") == table
    with pytest.raises(TypeError, match="set has no form"):
        to_toml({"a": {1}})


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("name", 5, "a text"),
        ("weight", "1", "a number"),
        ("weight", float("nan"), "a number"),
        ("weight", float("inf"), "a number"),
        ("weight", True, "a number"),
        ("batch", 2.0, "a whole number"),
        ("pattern", 5, "a text"),
        ("sources", "a.tar", "a list"),
        ("sources", [1], "a list, each of it a text"),
        ("fill", 0.5, "a list of 3"),
        ("fill", [0.1, 0.2], "a list of 3"),
        ("fill", ["a", "b", "c"], "a list, each of it a number"),
    ],
)
def test_a_value_of_another_kind_is_named(key: str, value: Any, rule: str) -> None:
    table = {"name": "a", "kind": "images", "sources": ["a.tar"], key: value}
    with pytest.raises(ConfigError, match=rf"^r.toml\.{key} is .*; must be {rule}$"):
        build(CorpusConfig, table, "r.toml")


def test_true_is_no_text() -> None:
    with pytest.raises(ConfigError, match=r"run\.tensorboard is 'no'; must be true or false$"):
        build(RunConfig, {"tensorboard": "no"}, "run")
