"""Fixtures for all tests, and the skips that the markers promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED = Path(__file__).parents[2] / "shared"

# A busy machine is no reason to fail, and a run must be repeatable.
settings.register_profile("flamvid", deadline=None, derandomize=True)
settings.load_profile("flamvid")


# A file's tests run in one process. These start and kill processes for minutes: begun last, they
# would keep one core busy at the end and leave the others idle.
LONG = (
    "index/test_kill.py",
    "end_to_end/test_train_killed.py",
    "end_to_end/test_live_faults.py",
    "train/test_killed.py",
    "train/test_parallel.py",
    "cli/test_live.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    no_shared = pytest.mark.skip(reason=f"{SHARED} is absent")
    no_cuda = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "needs_shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(no_shared)
        if "needs_cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_cuda)
