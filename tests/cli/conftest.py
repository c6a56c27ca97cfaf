"""The command with a fake model behind it, in this process or in a child."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import flamvid
from flamvid.cli.main import app

HERE = Path(__file__).parent
Run = Callable[..., Result]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The captioner behind `run`; the working folder is empty but for some sources."""
    monkeypatch.syspath_prepend(str(HERE))
    module, captioner = importlib.import_module("fake_api").build()
    monkeypatch.setitem(sys.modules, "flamvid.api", module)
    monkeypatch.setattr(flamvid, "api", module, raising=False)
    monkeypatch.setattr("flamvid.cli.caption.quiet_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4", "broken.mp4", "nan.mp4", "odd.mp4", "bug.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return captioner


@pytest.fixture
def run(fake: Any) -> Run:
    """Run the command in this process."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command as a process of its own, in the temporary folder."""
    for name in ("a.mp4", "b.mp4", "slow.mp4", "part_slow.mp4", "broken.mp4"):
        (tmp_path / name).write_bytes(b"x")

    def begin(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [sys.executable, str(HERE / "fake_api.py"), *arguments],
            cwd=tmp_path,
            env=environment,
            **options,
        )

    return begin
