"""Waiting for what a child process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

__all__ = ["wait_for"]

PATIENCE = 60.0  # seconds until it is given up: the machine may be busy


def wait_for(done: Callable[[], bool], child: subprocess.Popen[Any]) -> None:
    """Return once `done`; fail where the child ends before that, or nothing happens."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert child.poll() is None, child.stderr and child.stderr.read()
        assert time.monotonic() < deadline, f"nothing happened in {PATIENCE:g} s"
        time.sleep(0.02)
