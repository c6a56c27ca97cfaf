"""Checkpoints of a run: whole or absent, read without executing anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing is unpickled here
from typing import Any

import torch

from flamvid.errors import WeightsError
from flamvid.models.flamingo import Flamingo

__all__ = ["clear", "fitting", "latest", "restore", "restore_resampler", "save"]


def save(path: Path, state: dict[str, Any], keep: int | None = None) -> None:
    """Write atomically; with `keep`, remove all but the newest so many of its kind."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    if keep is not None:
        for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
            old.unlink()


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, if there is one."""
    found = sorted(folder.glob("step-*.pt"))
    return found[-1] if found else None


def clear(folder: Path) -> None:
    """Remove the checkpoints of an earlier run, which a later one must not resume from."""
    for old in folder.glob("*.pt"):
        old.unlink()


def restore(path: Path, model: Flamingo, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state back; returns the number of updates done."""
    with fitting(path):
        state = torch.load(path, weights_only=True)
        trained = dict(model.trained())
        with torch.no_grad():
            for name, tensor in state["trained"].items():
                trained[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def restore_resampler(path: Path, model: Flamingo) -> None:
    """Put back what the word stage saved."""
    with fitting(path):
        model.resampler.load_state_dict(torch.load(path, weights_only=True))


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint is damaged or another run's, where reading it fails."""
    try:
        yield
    except (UnpicklingError, EOFError) as error:  # torch's advice here is to run what it contains
        raise WeightsError(f"{path} does not fit this run: damaged; start with --fresh") from error
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} does not fit this run: {reason}; start with --fresh") from error
