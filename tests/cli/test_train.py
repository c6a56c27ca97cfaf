"""`flamvid train`: the recipe goes in, the adapter's path comes out."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flamvid
from flamvid.errors import ConfigError


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, fake: Any) -> types.SimpleNamespace:
    """A training loop that notes its arguments, and raises what it is told to."""
    notes = types.SimpleNamespace(calls=[], error=None)

    def run(
        recipe: Path, data: Path | None, out: Path, resume: bool, log: Callable[[str], None]
    ) -> Path:
        notes.calls.append((recipe, data, out, resume))
        log("captions 10/20 loss 1.5")
        if notes.error:
            raise notes.error
        return Path("run/adapter.safetensors")

    package, module = types.ModuleType("flamvid.train"), types.ModuleType("flamvid.train.loop")
    module.run = run  # type: ignore[attr-defined]
    package.loop = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flamvid.train", package)
    monkeypatch.setitem(sys.modules, "flamvid.train.loop", module)
    monkeypatch.setattr(flamvid, "train", package, raising=False)
    monkeypatch.setattr("flamvid.cli.train.quiet_libraries", lambda: None)
    Path("my.toml").write_text("")
    return notes


def test_the_path_is_data_and_the_rest_is_log(run: Any, loop: Any) -> None:
    result = run("train", "my.toml", "--out", "run")
    assert (result.exit_code, result.stdout) == (0, "run/adapter.safetensors\n")
    command, line = result.stderr.splitlines()
    here = Path.cwd().resolve()
    assert command == f"flamvid: flamvid train {here / 'my.toml'} --out={here / 'run'}"
    assert line == "captions 10/20 loss 1.5"
    Path("shards").mkdir()
    run("train", "my.toml", "--data", "shards", "--fresh")
    assert loop.calls == [
        (Path("my.toml"), None, Path("run"), True),
        (Path("my.toml"), Path("shards"), Path("runs/my"), False),
    ]


def test_failures_are_one_line(run: Any, loop: Any) -> None:
    assert run("train", "none.toml").exit_code == 2
    assert run("train", "my.toml", "--out", "my.toml").exit_code == 2
    assert run("train", "my.toml", "--data", "none").exit_code == 2
    loop.error = ConfigError("my.toml has no key 'lr'")
    result = run("train", "my.toml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "flamvid: my.toml has no key 'lr'"


def test_an_interrupted_run_says_how_to_go_on(run: Any, loop: Any) -> None:
    loop.error = KeyboardInterrupt()
    result = run("train", "my.toml", "--fresh")
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert "goes on from the last checkpoint" in last
    assert "--fresh" not in last
