"""`flamvid models`: what there is, fetched or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flamvid.cli.models import presets
from flamvid.errors import OfflineError
from flamvid.models.build import preset_names
from flamvid.weights import hub


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))


def test_presets_are_those_of_the_model_room() -> None:
    assert list(presets()) == preset_names()


def test_list_names_models_and_parts(run: Any) -> None:
    rows = json.loads(run("models", "list", "--json").stdout)
    assert [row["name"] for row in rows][:1] == ["flamvid-base"]
    keys = {"name", "kind", "cached", "size_bytes", "licence", "source"}
    assert all(set(row) == keys for row in rows)
    assert not any(row["cached"] for row in rows)
    table = run("models", "list").stdout.splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split() == ["name", "kind", "cached", "licence", "source"]


def test_show_describes_models_and_parts(run: Any) -> None:
    assert "flamvid models pull flamvid-base" in run("models", "show", "flamvid-base").stdout
    facts = json.loads(run("models", "show", "smollm2-135m-instruct", "--json").stdout)
    assert len(facts["sha256"]) == 64
    result = run("models", "show", "flamvid-bse")
    assert result.exit_code == 2
    assert "did you mean 'flamvid-base'?" in result.stderr


def test_pull_fetches_the_parts_and_reports_each_failure(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str) -> Path:
        if name.startswith("efficientnet"):
            raise OfflineError(f"can't fetch {name}")
        return Path("/cache") / name

    monkeypatch.setattr(hub, "resolve", resolve)
    result = run("models", "pull", "flamvid-base", "org/name")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "smollm2-135m-instruct: /cache/smollm2-135m-instruct",
        "org/name: /cache/org/name",
    ]
    assert result.stderr == "flamvid: can't fetch efficientnet-lite2\n"
