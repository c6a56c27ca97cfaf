"""The compiled module flamvid._C: loaded once, and what serves each operation, with the reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass

import torch

__all__ = ["Implementation", "implementation", "load"]

_reason = "not loaded yet"


@dataclass(frozen=True, slots=True)
class Implementation:
    """Who serves an operation on a device: `kernel` or `reference`, and why."""

    name: str
    why: str


def load() -> None:
    """Import flamvid._C, which takes the references' place, unless FLAMVID_KERNELS=0."""
    global _reason
    if os.environ.get("FLAMVID_KERNELS") == "0":
        _reason = "FLAMVID_KERNELS=0 asks for it"
    elif importlib.util.find_spec("flamvid._C") is None:
        _reason = "no compiled module here"
    else:
        try:
            importlib.import_module("flamvid._C")
            _reason = "compiled module loaded"
        except (ImportError, OSError, RuntimeError) as error:
            _reason = f"flamvid._C does not load: {error}"
            warnings.warn(
                f"{_reason}; the PyTorch references serve. Reinstall flamvid for this torch "
                f"({torch.__version__}), or set FLAMVID_KERNELS=0",
                RuntimeWarning,
                stacklevel=2,
            )


def implementation(op: str, device: str = "cpu") -> Implementation:
    """What serves flamvid::`op` on a device; media_attention is its forward operation."""
    name = "media_attention_forward" if op == "media_attention" else op
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    if _reason != "compiled module loaded":
        return Implementation("reference", _reason)
    # Any registration for the device is C++: the references are registered for all devices.
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"flamvid::{name}", key):
        return Implementation("kernel", _reason)
    return Implementation("reference", f"the compiled module has no {key} kernel for it")
