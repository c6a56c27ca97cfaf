"""The trained part of a model in one file: safetensors, with its configuration as JSON inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flamvid.errors import WeightsError

__all__ = ["load_adapter", "save_adapter"]


def save_adapter(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors and configuration; the file appears whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors would let nobody but the owner read the file
        save_file(whole, part, metadata={"flamvid": json.dumps(config)})
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of an adapter file."""
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give an adapter that `flamvid train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata["flamvid"])
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is damaged ({reason}); copy or train it again") from error
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} is no flamvid adapter: it holds no configuration") from error
