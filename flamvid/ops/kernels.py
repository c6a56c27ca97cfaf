"""The compiled module flamvid._C: loaded once, and what serves each operation, with the reason."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass

import torch

__all__ = [
    "CUDA_OPERATIONS",
    "OPERATIONS",
    "Implementation",
    "has_avx512",
    "implementation",
    "load",
]

CUDA_OPERATIONS = ("media_index", "media_attention_forward", "media_attention_backward")
# All have a kernel for CPUs.
OPERATIONS = (
    *CUDA_OPERATIONS,
    "latent_attention",
    "causal_attention",
    "linear_few",
    "linear_many",
    "linear_int8",
    "widen_int8",
    "feed_few",
    "cross_few",
    "self_few",
    "token_loss_",
)
_LOADED = "flamvid._C is loaded"

_reason = "not loaded yet"


@dataclass(frozen=True, slots=True)
class Implementation:
    """Who serves an operation on a device (kernel, reference, xformers, sdpa), and why."""

    name: str
    why: str


def load() -> None:
    """Import flamvid._C, which takes the references' place, unless FLAMVID_KERNELS=0.

    One that is there but does not load is named in one RuntimeWarning; the references then serve.
    """
    global _reason
    if os.environ.get("FLAMVID_KERNELS") == "0":
        _reason = "FLAMVID_KERNELS=0 asks for it"
        return
    try:
        if importlib.util.find_spec("flamvid._C") is None:
            _reason = "flamvid was installed without compiled kernels"
            return
        importlib.import_module("flamvid._C")
        _reason = _LOADED
    except (ImportError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        _reason = f"flamvid._C does not load: {line}"
        warnings.warn(
            f"{_reason}; the PyTorch references serve, slower: reinstall flamvid beside torch "
            f"{torch.__version__} (pip install --no-build-isolation), or set FLAMVID_KERNELS=0",
            RuntimeWarning,
            stacklevel=2,
        )


def has_avx512() -> bool:
    """Whether this processor has registers of 16 floats; false where torch is told otherwise."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def implementation(op: str, device: str = "cpu") -> Implementation:
    """What serves flamvid::`op` (one of OPERATIONS) on `cpu` or `cuda`."""
    if _reason != _LOADED:
        return Implementation("reference", _reason)
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    # Any registration for the device is C++: the references are registered for all devices.
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"flamvid::{op}", key):
        return Implementation("kernel", _reason)
    return Implementation("reference", f"flamvid._C has no {key} kernel for it")
