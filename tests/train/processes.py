"""Real processes, to be killed or to work together, forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

__all__ = ["start", "together", "writing"]

_MAKER = multiprocessing.get_context("forkserver")
_MAKER.set_forkserver_preload(["tests.train.killed", "tests.train.together"])


def start(
    target: Callable[..., None], *args: Any, env: dict[str, str] | None = None
) -> BaseProcess:
    """One process that calls `target`, on one thread."""
    process = _MAKER.Process(target=_call, args=(target, args, env or {}))
    process.start()
    return process


def together(count: int, target: Callable[..., None], *args: Any) -> None:
    """So many processes that know of each other as torchrun would have it; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [start(target, *args, env={**known, "RANK": str(at)}) for at in range(count)]
    for process in started:
        process.join(120)
        if process.exitcode != 0:
            for other in started:
                other.kill()
        assert process.exitcode == 0


def writing(out: Path, since: float) -> bool:
    """Whether a snapshot is half written, and not by an earlier attempt."""
    with contextlib.suppress(FileNotFoundError):  # complete by now
        return any(file.stat().st_mtime > since for file in out.glob("step-*.part/*"))
    return False


def _call(target: Callable[..., None], args: tuple[Any, ...], env: dict[str, str]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    target(*args)
