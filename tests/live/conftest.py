"""A tiny model."""

from __future__ import annotations

import pytest

from flamvid.weights.load import LoadedModel, load_model
from tests.tiny import make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(make_model(tmp_path_factory.mktemp("live"))))
