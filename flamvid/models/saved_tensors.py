"""A folder's tensors: one safetensors file, or shards of a size with their index."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamvid.errors import InputError, WeightsError
from flamvid.models.pointers import refuse_pointers

__all__ = ["INDEX", "WEIGHTS", "read_tensors", "write_tensors"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], max_shard_size: int | str | None
) -> str:
    """Write them, in shards if they exceed a size such as "5GB"; the name of what to read.

    Each file appears whole or not at all, and what a save before left is taken away at the end.
    """
    shards = {WEIGHTS: list(tensors)}
    if max_shard_size is not None:
        shards = _split(tensors, max_shard_size)
    for name, held in shards.items():
        _write(folder / name, {key: tensors[key] for key in held})
    whole = list(shards) == [WEIGHTS]
    if not whole:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        places = {key: name for name, held in shards.items() for key in held}
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors"):
        if old.name not in shards:
            old.unlink()
    return WEIGHTS if whole else INDEX


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All of them, in mapped memory."""
    try:
        names = [WEIGHTS]
        if (folder / INDEX).is_file():
            table = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted({Path(name).name for name in table.values()})
        tensors: dict[str, Tensor] = {}
        refuse_pointers(*(folder / name for name in names))
        for name in names:
            tensors |= load_file(folder / name)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"{folder / WEIGHTS} is missing or damaged ({reason})") from error
    return tensors


def _split(tensors: Mapping[str, Tensor], size: int | str) -> dict[str, list[str]]:
    from huggingface_hub import split_torch_state_dict_into_shards

    try:
        split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=size)
    except ValueError as error:
        raise InputError(
            f"max_shard_size is {size!r}; must be bytes, or a text such as '5GB'"
        ) from error
    return {name: list(held) for name, held in split.filename_to_tensors.items()}


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors would let nobody but the owner read the file
        save_file(dict(tensors), part, metadata={"format": "pt"})
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
