"""Files of tensors, memory-mapped and never executed: safetensors, or torch's by weights_only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flamvid.errors import WeightsError
from flamvid.models.pointers import refuse_pointers

__all__ = ["open_tensors"]

_NESTS = ("model_state_dict", "model_state", "state_dict")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's files begin
# In a folder the first of these that is there is read.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "checkpoint.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoint.pt",
)


def open_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a folder with a whole or sharded checkpoint, by name.

    They lie in mapped memory: of a tensor that is not used, nothing is read from the disk.
    Raises WeightsError for what is missing, damaged, or would execute something.
    """
    if path.is_dir():
        return open_tensors(_checkpoint(path))
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give a checkpoint (.safetensors, .pt, .bin)")
    if path.name.endswith(".index.json"):
        return _sharded(path)
    refuse_pointers(path)
    return _safe(path) if path.suffix == ".safetensors" else _torch(path)


def _checkpoint(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    loose = sorted(f for kind in ("*.safetensors", "*.pt", "*.pth") for f in folder.glob(kind))
    if len(loose) != 1:
        raise WeightsError(
            f"{folder} holds {len(loose)} checkpoints and none is called {' or '.join(_NAMES[:3])};"
            " give the path of the file"
        )
    return loose[0]


def _sharded(index: Path) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is no index of a sharded checkpoint; copy it again") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index} names the shard {name!r}; a shard lies beside its index")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent} lacks the shard {name}; copy or fetch it again")
        tensors |= open_tensors(index.parent / name)
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise WeightsError(f"the shards of {index} lack {missing[0]} ({len(missing)} tensors)")
    return tensors


def _safe(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({_line(error)}); copy or fetch it again") from error


def _torch(path: Path) -> dict[str, Tensor]:
    if path.stat().st_size and not _begins(path, _ZIP, _PICKLE):
        raise WeightsError(
            f"{path} is no checkpoint: neither safetensors nor a file of torch; fetch it again"
        )
    try:
        held = _load(path)
    except UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, and nothing of it was executed; "
            "get it from its author as safetensors"
        ) from error
    except Exception as error:  # whatever an unpickler stumbles over in bytes that are none
        raise WeightsError(f"{path} is damaged ({_line(error)}); copy or fetch it again") from error
    for nest in _NESTS:
        if isinstance(held, Mapping) and isinstance(held.get(nest), Mapping):
            held = held[nest]
    tensors = _tensors(held)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name; give a state dict")
    return tensors


def _load(path: Path) -> Any:
    if not _begins(path, _ZIP):  # torch before 1.6 wrote what can't be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _begins(path: Path, *marks: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(marks)


def _tensors(held: Any) -> dict[str, Tensor]:
    if not isinstance(held, Mapping):
        return {}
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "unreadable")
