"""The processes that train one model together, of which there may be one.

torchrun (or SLURM's srun through it) starts them and says by RANK, WORLD_SIZE and LOCAL_RANK which
is which. They meet through NCCL on GPUs and through gloo on CPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from flamvid.errors import ConfigError, FlamvidError, SourceError

__all__ = ["World", "joined"]


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: its rank, how many there are, the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it can't be changed

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over all processes of each value."""
        if self.size == 1 or not values:
            return list(values)
        table = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(table)
        summed: list[float] = table.tolist()
        return summed

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        table = torch.tensor(value, device=self.device)
        dist.all_reduce(table, dist.ReduceOp.MAX)
        return int(table)

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return self.sum([float(value)])[0] > 0

    def texts(self, text: str) -> list[str]:
        """Every process's text, by its rank."""
        if self.size == 1:
            return [text]
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        table = torch.zeros(self.size, self.most(len(data)), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        table = table.to(self.device)
        dist.all_reduce(table)
        return [bytes(row).rstrip(b"\0").decode() for row in table.tolist()]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does it before the others: what it writes, they find."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def gathered(self, items: Sequence[Any]) -> list[Any]:
        """Every process's items, as JSON has them, by its rank."""
        return [item for text in self.texts(json.dumps(items)) for item in json.loads(text)]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What one process can't read here ends all, by the same SourceError: none waits for it."""
        problem = ""
        try:
            yield
        except FlamvidError as error:
            if self.size == 1:
                raise
            problem = str(error)
        if self.any(bool(problem)):
            raise SourceError(next(filter(None, self.texts(problem))))

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """This process's place in the world, for as long as the context lasts."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise ConfigError(f"run.device is {device!r}, but torch sees no CUDA device; use cpu")
    where = torch.device("cuda" if device == "auto" else device) if cuda else torch.device("cpu")
    if size == 1:
        yield World(device=where)
        return
    if cuda:
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield World(dist.get_rank(), size, where)
    finally:
        dist.destroy_process_group()
