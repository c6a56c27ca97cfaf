"""Checkpoints of a run: whole or absent, read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from flamvid.errors import WeightsError
from flamvid.models.flamingo import Flamingo

__all__ = ["latest", "restore", "save"]


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


def restore(path: Path, model: Flamingo, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state back; returns the number of updates done."""
    try:
        state = torch.load(path, weights_only=True)
        trained = dict(model.trained())
        with torch.no_grad():
            for name, tensor in state["trained"].items():
                trained[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} does not fit this run: {reason}; start with --fresh") from error
    return int(state["step"])
