"""An objective in one process, in several that each hold all of it (DDP), or that share it (FSDP2).

Whichever it is, gradients are those of the whole batch of all processes.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from flamvid.errors import ConfigError
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import decoder_layers
from flamvid.train.world import World

__all__ = ["ENGINES", "Parallel"]

ENGINES = ("ddp", "fsdp")
# torch 2.14 calls it by another name.
_BUFFERS: dict[str, Any] = next(
    {name: False}
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters
)


class Parallel:
    """Calls the objective, and brings gradients together once an update.

    module: an objective that gives 0 for None, with all its trained parameters in it, and whose
    `trained()` names them (`Objective`). engine: "ddp" or "fsdp", where there are processes.
    """

    def __init__(self, module: nn.Module, world: World, engine: str = "ddp") -> None:
        if engine not in ENGINES:
            raise ConfigError(f"run.engine is {engine!r}; must be one of {', '.join(ENGINES)}")
        self.world, self.objective = world, module
        self.sharded = world.size > 1 and engine == "fsdp"
        self.module: Any = module
        if self.sharded:
            self._alone = _shard(module, world)
        elif world.size > 1:
            self.module = nn.parallel.DistributedDataParallel(
                module,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                **_BUFFERS,  # the only buffers are of frozen parts
            )

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters of what is trained; of a shared model, this process's share."""
        objective: Any = self.objective
        yield from objective.trained()

    def running(self) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers of what batch norms average as they go."""
        for name, module in self.objective.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                for buffer, tensor in module.named_buffers(recurse=False):
                    yield f"{name}.{buffer}", tensor

    def __call__(self, batch: Any) -> Tensor:
        """The loss of a batch, summed over its scored tokens."""
        if self.sharded:
            batch = self.objective.padded(batch, self.world)  # type: ignore[operator]
        with self._quiet():
            loss: Tensor = self.module(batch)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss; processes need not agree on it before `finish`.

        Shared models exchange it at once: a process has no room for the whole of it.
        """
        if loss.requires_grad:
            with self._quiet():
                loss.backward()

    def leave_out(self) -> None:
        """Forget a loss that gets no backward pass."""
        for module in self.objective.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()  # or the next forward pass would see the weights as they are now

    def finish(self, clip: float) -> float:
        """Bring all gradients together, clip their norm, and return what it was."""
        if self.world.size > 1 and not self.sharded:
            # The one exchange of an update. Whatever was left out before, it is the same here.
            self.module(None).backward()
        parameters = [p for _, p in self.trained()]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not self.sharded:
            return float(nn.utils.clip_grad_norm_(parameters, clip))
        return self._clip_shards(parameters, clip)

    def _quiet(self) -> AbstractContextManager[None]:
        if self.world.size > 1 and not self.sharded:
            context: AbstractContextManager[None] = self.module.no_sync()
            return context
        return nullcontext()

    def _clip_shards(self, parameters: list[Tensor], clip: float) -> float:
        for parameter in self._alone:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= self.world.size
        grads = [p.grad for p in parameters if p.grad is not None]
        shards = [g.to_local() for g in grads if isinstance(g, DTensor)]
        whole = [g for g in grads if not isinstance(g, DTensor)]
        square = self.world.sum([float(nn.utils.get_total_norm(shards)) ** 2])[0]
        norm = math.sqrt(square + float(nn.utils.get_total_norm(whole)) ** 2)
        if norm > clip:
            for grad in (*shards, *whole):
                grad *= clip / (norm + 1e-6)
        return norm


def _shard(module: nn.Module, world: World) -> list[Tensor]:
    """Share the parameters out; returns the trained ones that can't be, as they are single numbers.

    Frozen vision stays whole: it runs apart from the objective, and is small beside the rest.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # It warns of changing in place what a module returns, which nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(world.device.type, (world.size,))
    alone = [p for p in module.parameters() if p.ndim == 0]  # in the same order everywhere
    flamingo = getattr(module, "flamingo", None)
    ignored = set(alone)
    if isinstance(flamingo, Flamingo):
        if not any(p.requires_grad for p in flamingo.vision.parameters()):
            ignored |= set(flamingo.vision.parameters())
        for xattn in flamingo.lm.inserted:
            fully_shard(xattn, mesh=mesh, ignored_params=ignored)
            register_fsdp_forward_method(xattn, "read")
        for layer in (*decoder_layers(flamingo.lm.lm), flamingo.resampler):
            fully_shard(layer, mesh=mesh, ignored_params=ignored)
    fully_shard(module, mesh=mesh, ignored_params=ignored)
    return [p for p in alone if p.requires_grad]
