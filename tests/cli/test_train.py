"""`flamvid train`: the recipe goes in, the result's path comes out."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flamvid.cli.training import Watch
from flamvid.errors import ConfigError
from flamvid.train import session
from flamvid.train.ready import Part
from flamvid.train.trainer import Report
from flamvid.train.trial import Trial

PAIRS = '[data]\nclips = ["a.tar"]\nvalidation = ["b.tar"]\n'


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, fake: Any) -> types.SimpleNamespace:
    """A training loop that notes its arguments, and raises what it is told to."""
    notes = types.SimpleNamespace(calls=[], error=None, result=Path("run/model.toml"))

    def run(
        recipe: Any, out: Path, resume: bool, log: Callable[[str], None], watch: Any
    ) -> session.Outcome:
        notes.calls.append((recipe, out, resume))
        log("24 clips")
        if notes.error:
            raise notes.error
        return session.Outcome(notes.result, 7)

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr("flamvid.cli.train.quiet_libraries", lambda: None)
    Path("my.toml").write_text(PAIRS)
    return notes


def test_the_path_is_data_and_the_rest_is_log(run: Any, loop: Any) -> None:
    result = run("train", "my.toml", "--out", "run")
    assert (result.exit_code, result.stdout) == (0, "run/model.toml\n")
    command, *recipe, line = result.stderr.splitlines()
    here = Path.cwd().resolve()
    Path("again.toml").write_text("\n".join(recipe))
    assert session.read(Path("again.toml")) == replace(
        session.read(Path("my.toml")), name="again", data=session.read(Path("again.toml")).data
    )
    assert command == f"flamvid: flamvid train {here / 'my.toml'} --out={here / 'run'}"
    assert line == "24 clips"
    Path("shards").mkdir()
    run("train", "my.toml", "--data", "shards", "--fresh", "--set", "captions.steps=3")
    first, second = loop.calls
    assert first[1:] == (Path("run"), True)
    assert second[1:] == (Path("runs/my"), False)
    assert (second[0].root, second[0].captions.steps) == (here / "shards", 3)


def test_failures_are_one_line(run: Any, loop: Any) -> None:
    assert run("train", "none.toml").exit_code == 2
    assert run("train", "my.toml", "--out", "my.toml").exit_code == 2
    assert run("train", "my.toml", "--data", "none").exit_code == 2
    result = run("train", "my.toml", "--lora", "2")
    assert result.exit_code == 2
    assert "my.toml trains on frozen features; --fine-tune" in result.stderr
    assert not loop.calls
    loop.error = ConfigError("my.toml has no key 'lr'")
    result = run("train", "my.toml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "flamvid: my.toml has no key 'lr'"


def test_a_dry_run_prints_a_recipe_that_can_be_read(
    run: Any, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (Part("resampler", 1200, 1200),)

    def try_out(recipe: Any, out: Path, log: Callable[[str], None]) -> Trial:
        log("loading")
        return Trial(parts, 2400, 90.0, 3700.0)

    monkeypatch.setattr(session, "try_out", try_out)
    result = run("train", "my.toml", "--dry-run")
    assert (result.exit_code, loop.calls) == (0, [])
    assert result.stderr.splitlines()[-1] == "loading"
    Path("again.toml").write_text(result.stdout)
    assert session.read(Path("again.toml")) == replace(
        session.read(Path("my.toml")), name="again", data=session.read(Path("again.toml")).data
    )
    assert "# resampler: 1,200 parameters, 1,200 trained" in result.stdout
    assert "# features of all shards take about 1 h 1 min before it" in result.stdout
    assert "# 2,400 updates take about 1 min 30 s on this machine" in result.stdout


def test_a_run_that_ends_early_says_how_to_go_on(run: Any, loop: Any) -> None:
    loop.result = None
    result = run("train", "my.toml", "--fresh")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "stopped after 7 updates; flamvid train" in result.stderr.splitlines()[-1]
    loop.error = KeyboardInterrupt()
    result = run("train", "my.toml", "--fresh")
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert "goes on from the last checkpoint" in last
    assert "--fresh" not in last


def test_lines_tell_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(3, 9, {"clips": 1.5}, 2.0, 1e-4, 8.0, 0.01, 0.5, 62.4, [[0.1, -0.25]])
    Watch(None)(report)
    assert capsys.readouterr().err == (
        "update 3/9 loss clips 1.5000 norm 2.00 rate 1.00e-04 gate 0.250 8.0 samples/s "
        "waited 1.0% encoding 50.0%, 1 min 2 s left\n"
    )
