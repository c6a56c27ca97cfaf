"""Snapshots of a run, one folder each: whole or absent, and fit for another number of processes.

torch.distributed.checkpoint writes every process's share of weights and moments as safetensors, and
reads them into whatever shares there are then. The rest is JSON. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from flamvid.errors import WeightsError
from flamvid.train.parallel import Parallel

__all__ = ["Snapshots"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots in a run's folder: `step-00000100/`, the last `keep` of them and the best."""

    folder: Path
    keep: int = 2

    def all(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(p for p in self.folder.glob("step-*") if p.suffix != ".part")

    def latest(self) -> Path | None:
        """The newest, if there is one."""
        return next(reversed(self.all()), None)

    def sweep(self) -> None:
        """Remove what a run left that was killed while it wrote."""
        for part in self.folder.glob("step-*.part"):
            shutil.rmtree(part)

    def clear(self) -> None:
        """Remove all, and what an interrupted run left of one."""
        for old in self.folder.glob("step-*"):
            shutil.rmtree(old)
        (self.folder / "best.json").unlink(missing_ok=True)

    def missing(self, parallel: Parallel) -> int:
        """Bytes that are to be written before old ones are removed: of `keep`, the best, and one
        more, each with float32 weights and both moments, less what lies there.
        """
        one = sum(12 * p.numel() for _, p in parallel.trained())
        held = sum(f.stat().st_size for path in self.all() for f in path.iterdir())
        return (self.keep + 2) * one - held

    def save(
        self,
        step: int,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        data: Mapping[str, Any],
    ) -> Path:
        """Write one after `step` updates; `data` is this process's place in its data.

        Raises WeightsError where the disk is full or can't be written; older ones stay as they are.
        """
        world = parallel.world
        path = self.folder / f"step-{step:08d}"
        part = path.with_suffix(".part")

        def prepare() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

        def write() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is one process is no news
                save(
                    dict(_tensors(parallel, optimizer)),
                    storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True),
                    no_dist=world.size == 1,
                )
            _write(part / f"data-{world.rank}.json", data)

        def complete() -> None:
            state = {"step": step, "processes": world.size, "adam": _steps(optimizer)}
            _write(part / "state.json", state)
            for file in part.iterdir():
                _sync(file)
            if path.exists():  # a run that was stopped just here, and did the update again
                shutil.rmtree(path)
            part.rename(path)
            _sync(self.folder)
            self._prune()

        for stage, everywhere in ((prepare, False), (write, True), (complete, False)):
            problem = ""
            if everywhere or world.first:
                problem = _attempt(stage)
            if world.any(bool(problem)):  # none goes on without the others
                if world.first:
                    shutil.rmtree(part, ignore_errors=True)
                last = self.latest()
                raise WeightsError(
                    f"can't write {path}: {problem or 'another process failed'}; "
                    f"{f'{last} is whole' if last else 'nothing is saved'}: make room, and give "
                    "the command again"
                )
        return path

    def mark_best(self, path: Path, loss: float) -> None:
        """Say that this one has the lowest validation loss so far, and so is to stay."""
        _write(self.folder / "best.json", {"snapshot": path.name, "loss": loss})
        self._prune()

    def best(self) -> tuple[str, float] | None:
        """Name and loss of the best so far."""
        try:
            table = json.loads((self.folder / "best.json").read_text())
            return str(table["snapshot"]), float(table["loss"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restore(
        self, path: Path, parallel: Parallel, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Put weights and moments back; returns the state, and each process's place in its data.

        Raises WeightsError for one that is damaged or of another model.
        """
        try:
            state = json.loads((path / "state.json").read_text())
            data = [
                json.loads((path / f"data-{rank}.json").read_text())
                for rank in range(state["processes"])
            ]
            for _, parameter in parallel.trained():
                moments = {key: torch.zeros_like(parameter) for key in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(state["adam"])), **moments}
            tensors = dict(_tensors(parallel, optimizer))
            reader = HuggingFaceStorageReader(str(path))
            _compare(tensors, reader, path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(tensors, storage_reader=reader, no_dist=parallel.world.size == 1)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise WeightsError(f"{path} is damaged: {_reason(error)}; remove it") from error
        except CheckpointException as error:
            raise WeightsError(f"{path} does not fit: {_reason(error)}; use --fresh") from error
        return state, data

    def _prune(self) -> None:
        best = self.best()
        kept = {p.name for p in self.all()[-self.keep :]} | ({best[0]} if best else set())
        for old in self.all():
            if old.name not in kept:
                # Renamed first: a run that is stopped here must not find half of one.
                gone = old.with_suffix(".part")
                old.rename(gone)
                shutil.rmtree(gone)


def _tensors(parallel: Parallel, optimizer: torch.optim.Optimizer) -> Any:
    """All that is saved, under names of its own; what is loaded is copied into these."""
    for name, parameter in parallel.trained():
        state = optimizer.state.get(parameter, {})
        yield f"weights.{name}", _listed(parameter.detach())
        for key in _MOMENTS:
            if key in state:
                yield f"{key}.{name}", _listed(state[key])
    for name, buffer in parallel.running():
        yield f"running.{name}", _listed(buffer)


def _listed(tensor: Tensor) -> Tensor:
    """A single number as a list of one, which shares its memory."""
    return tensor.view(1) if tensor.ndim == 0 and not isinstance(tensor, DTensor) else tensor


def _steps(optimizer: torch.optim.Optimizer) -> int:
    """How many updates the moments have seen: fewer than the run, where some were left out."""
    return int(max((float(s["step"]) for s in optimizer.state.values()), default=0.0))


def _compare(tensors: Mapping[str, Tensor], reader: HuggingFaceStorageReader, path: Path) -> None:
    held = reader.read_metadata().state_dict_metadata
    found = {n: tuple(m.size) for n, m in held.items() if isinstance(m, TensorStorageMetadata)}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    if wrong:
        raise WeightsError(
            f"{path} is of another model or recipe: {', '.join(wrong[:3])} differ; "
            "give the recipe that it was made with, or --fresh"
        )


def _write(path: Path, table: Mapping[str, Any]) -> None:
    """JSON, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(table))
    _sync(part)
    part.replace(path)


def _sync(path: Path) -> None:
    """Wait until it is on the disk, file or folder."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def _attempt(stage: Callable[[], None]) -> str:
    """Why it failed, if it did."""
    try:
        stage()
    except (OSError, CheckpointException, SafetensorError) as error:
        return _reason(error)
    return ""


def _reason(error: BaseException) -> str:
    """The one line that says most: what failed in a process, not that one did."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__
