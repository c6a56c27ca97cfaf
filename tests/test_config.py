"""Tables to dataclasses: what does not fit is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamvid.config import build, read_toml, to_toml
from flamvid.data.corpus import CorpusConfig
from flamvid.errors import ConfigError


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
