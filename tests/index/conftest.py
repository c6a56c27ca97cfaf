"""A tiny model, and a library of clips for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flamvid.api import Captioner, load
from tests.index.library_files import make_library
from tests.tiny import make_model


@pytest.fixture(scope="session")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def captioner(toml: Path) -> Captioner:
    return load(str(toml), device="cpu")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(tmp_path_factory.mktemp("library") / "videos")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that searches keep lie where nothing else finds them."""
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))
