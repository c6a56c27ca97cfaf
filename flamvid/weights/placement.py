"""Where a model's weights lie and in how many bits, by optional packages."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo

__all__ = ["quantise", "spread"]


def quantise(flamingo: Flamingo) -> None:
    """The language model's and the new layers' weights to int8, with a scale per row (torchao).

    Activations keep their dtype; embeddings, head, norms and the vision encoder are left as they
    are. In place, on CPU or GPU.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError(
            "dtype int8 needs torchao, which is not installed; pip install 'flamvid[int8]', or use "
            "bf16"
        ) from error
    head = flamingo.lm.lm.get_output_embeddings()

    def wanted(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and module is not head

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (flamingo.lm.lm, flamingo.lm.inserted):
            quantize_(part, Int8WeightOnlyConfig(), filter_fn=wanted)


def spread(flamingo: Flamingo, device_map: str) -> torch.device:
    """Lay the language model's layers over all devices, the disk last; where its input goes.

    device_map: accelerate's "auto", "balanced", "balanced_low_0" or "sequential".
    """
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ImportError as error:
        raise InputError(
            f"device_map {device_map!r} needs accelerate, which is not installed; "
            "pip install 'flamvid[large]', or give a device"
        ) from error
    known = ("auto", "balanced", "balanced_low_0", "sequential")
    if device_map not in known:
        raise InputError(f"device_map is {device_map!r}; must be one of {', '.join(known)}")
    lm: Any = flamingo.lm.lm
    whole = list(lm._no_split_modules or ())
    memory = None
    if device_map != "sequential":
        low_zero = device_map == "balanced_low_0"
        memory = get_balanced_memory(lm, no_split_module_classes=whole, low_zero=low_zero)
    places = infer_auto_device_map(lm, max_memory=memory, no_split_module_classes=whole)
    dispatch_model(lm, places)
    return _follow(flamingo)


def _follow(flamingo: Flamingo) -> torch.device:
    """Put the other parts where what they meet lies."""
    first = flamingo.lm.lm.get_input_embeddings().weight.device
    main = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home = main if first.type == "meta" else first
    for part in (flamingo.vision, flamingo.resampler, flamingo.lm.inserted):
        part.to(home)
    return home
