"""A tiny model, and a library of clips for it."""

from __future__ import annotations

import shutil
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


@pytest.fixture
def library_of_three(tmp_path: Path, videos: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    for name, old in {"a": "red 0", "b": "blue 2", "c": "aqua 4"}.items():
        shutil.copy(videos / f"{old}.mp4", folder / f"{name}.mp4")
    return folder
