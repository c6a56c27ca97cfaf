"""What a run writes down as it goes: JSON lines, and if asked TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flamvid.errors import ConfigError

__all__ = ["LOG", "Journal", "flat", "read_journal"]

LOG = "log.jsonl"


class Journal:
    """One line for each entry in `log.jsonl`; entries after `step` are those of a run that was cut.

    Losses are under "loss", by corpus; gates are [[attention, feed-forward], ...] by layer. An
    update that left something out has an entry too: "skipped" are corpora whose loss was no finite
    number, "applied" is false where the gradient was none. Such a number itself is null.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False, wandb: str = "") -> None:
        kept = [e for e in read_journal(folder) if e["step"] <= step] if step else []
        path = folder / LOG
        part = path.with_suffix(".part")
        part.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept))
        part.replace(path)
        self.problem = ""
        self._file = path.open("a")
        self._board = _board(folder, step) if tensorboard else None
        self._wandb = _wandb(folder, wandb) if wandb else None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Write it everywhere. A disk that is full stops no run: `problem` says that it is."""
        try:
            self._file.write(f"{json.dumps(_finite(entry))}\n")
            self._file.flush()
        except OSError as error:
            self.problem = f"can't write {self._file.name}: {error.strerror}"
        values = flat(entry)
        if self._board is not None:
            try:
                for name, value in values.items():
                    self._board.add_scalar(name, value, entry["step"])
            except OSError as error:  # of its thread, which is no more
                self.problem = f"can't write for TensorBoard: {error.strerror or error}"
                self._board = None
        if self._wandb is not None:
            self._wandb.log(values, step=entry["step"])

    def close(self) -> None:
        """Let all go."""
        for file in (self._file, self._board):
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                self.problem = f"can't write the last of a log: {error.strerror or error}"
        if self._wandb is not None:
            self._wandb.finish()


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run; what was cut in the middle of a line is left out."""
    entries = []
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            tables = (entry.get(key, {}) for key in ("loss", "validation"))
            if all(isinstance(table, dict) for table in tables):  # else it is no line of ours
                entries.append(entry)
    return entries


def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by their path, as `loss/pages` and `gates/0/1`."""
    out: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            out |= flat({str(at): x for at, x in enumerate(value)}, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "step":
            out[f"{prefix}{key}"] = float(value)
    return out


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "run.tensorboard needs the package tensorboard; pip install 'flamvid[train]'"
        ) from error
    _silence_board()
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _silence_board() -> None:
    """Let TensorBoard's thread print no traceback on a full disk: `Journal.write` tells of it."""
    tell = threading.excepthook

    def hook(what: threading.ExceptHookArgs) -> None:
        theirs = type(what.thread).__module__.startswith("tensorboard.")
        if not (theirs and isinstance(what.exc_value, OSError)):
            tell(what)

    threading.excepthook = hook


def _wandb(folder: Path, project: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "run.wandb needs the package wandb; pip install 'flamvid[wandb]'"
        ) from error
    where = folder.resolve()
    # By its place: many runs have the same name, and a resumed one goes on under its own.
    run = hashlib.sha256(str(where).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=where.name, id=run, dir=str(where), resume="allow")
