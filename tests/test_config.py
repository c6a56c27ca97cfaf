"""Tables to dataclasses: what does not fit is one line."""

from __future__ import annotations

import pytest

from flamvid.config import build
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
