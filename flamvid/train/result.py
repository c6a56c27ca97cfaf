"""What a run leaves: an adapter beside its model's TOML, or a whole model where more learnt."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from flamvid import config
from flamvid.train.lora import merge_lora
from flamvid.train.parallel import Parallel
from flamvid.weights.adapter import save_adapter
from flamvid.weights.load import LoadedModel

__all__ = ["ADAPTER", "save_result"]

ADAPTER = "adapter.safetensors"


def save_result(
    out: Path,
    model: LoadedModel,
    parallel: Parallel,
    recipe: Any,
    step: int,
    vocabulary: Tensor | None = None,
) -> Path:
    """Write the model as it is after `step` updates; the path that `flamvid caption --model` takes.

    vocabulary: the tokens that alone it learnt to choose among. All processes call it, for each may
    hold a share; the first one writes.
    """
    names = [name for name, _ in parallel.trained()]
    if not any(name.startswith("vision.") or "lora_" in name for name in names):
        tensors = {name: _whole(parameter.detach()) for name, parameter in parallel.trained()}
        if parallel.world.first:
            table = asdict(model.config)
            settings = {"model": table, "recipe": recipe, "step": step}
            halves = {name: tensor.half() for name, tensor in tensors.items()}
            if vocabulary is not None:
                halves["vocabulary"] = vocabulary.to(torch.int32)
            save_adapter(out / ADAPTER, halves, settings)
            table = asdict(replace(model.config, adapter=ADAPTER))
            del table["name"]
            _write(out / "model.toml", config.to_toml(table))
        return out / "model.toml"
    _gather(parallel)
    if parallel.world.first:
        merge_lora(model.flamingo.lm)
        folder = out / "model"
        model.flamingo.save_pretrained(folder, vocabulary=vocabulary)
    return out / "model"


def _gather(parallel: Parallel) -> None:
    """Put whole tensors in the place of shares, in the first process. It is not trained after."""
    modules = [*parallel.objective.modules()]
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()  # or what a validation gathered would come in between
    known: dict[int, nn.Parameter] = {}  # tables may be shared by two modules
    for module in modules:
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if id(parameter) not in known:
                    whole = _whole(parameter.detach())
                    kept = whole.cpu() if parallel.world.first else whole.new_empty(0)
                    known[id(parameter)] = nn.Parameter(kept, requires_grad=False)
                module._parameters[name] = known[id(parameter)]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
