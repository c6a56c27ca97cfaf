"""Where a model's weights lie and in how many bits, by optional packages."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo
from flamvid.models.int8 import make_int8
from flamvid.models.lm import layers_path

__all__ = ["quantise", "spread"]

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def quantise(flamingo: Flamingo, own: bool) -> None:
    """The language model's and the new layers' weights to int8, in place.

    On a CPU by our own kernel, the head too; else by torchao, with a scale per row and the head as
    it is. Activations keep their dtype. Embeddings, norms and what comes before the language model,
    where weights are the least of the work, are left as they are.
    """
    if own:
        for part in (flamingo.lm.lm, flamingo.lm.inserted):
            make_int8(part)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError(
            "dtype int8 needs torchao for anything but one CPU, and it is not installed; "
            "pip install 'flamvid[int8]', or use bf16"
        ) from error
    head = flamingo.lm.lm.get_output_embeddings()

    def wanted(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and module is not head

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (flamingo.lm.lm, flamingo.lm.inserted):
            quantize_(part, Int8WeightOnlyConfig(), filter_fn=wanted)


def spread(flamingo: Flamingo, device_map: str) -> torch.device:
    """Lay the language model's layers over all devices and the CPU; where its input goes.

    device_map: accelerate's "auto", "balanced", "balanced_low_0" or "sequential". Each new layer
    goes where the layer that it stands at is computed, and the head back to where text comes in.
    """
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory, get_max_memory
    except ImportError as error:
        raise InputError(
            f"device_map {device_map!r} needs accelerate, which is not installed; "
            "pip install 'flamvid[large]', or give a device"
        ) from error
    if device_map not in _MAPS:
        raise InputError(f"device_map is {device_map!r}; must be one of {', '.join(_MAPS)}")
    lm: Any = flamingo.lm.lm
    room = get_max_memory()
    # What lies in memory already needs no more of it, nor the disk.
    room["cpu"] += sum(p.numel() * p.element_size() for p in lm.parameters())
    whole = list(lm._no_split_modules or ())
    if device_map != "sequential":
        low_zero = device_map == "balanced_low_0"
        room = get_balanced_memory(lm, room, no_split_module_classes=whole, low_zero=low_zero)
    places = infer_auto_device_map(lm, max_memory=room, no_split_module_classes=whole)
    home = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    names = {module: name for name, module in lm.named_modules()}
    for ends in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        if names[ends] in places:
            places[names[ends]] = home.index if home.type == "cuda" else "cpu"
    dispatch_model(lm, places, main_device=home)

    flamingo.vision.to(home)
    flamingo.resampler.to(home)
    for xattn, layer in zip(flamingo.lm.inserted, flamingo.lm.at, strict=True):
        xattn.to(_computed_on(f"{layers_path(lm)}.{layer}", places, home))
    return home


def _computed_on(name: str, places: dict[str, Any], home: torch.device) -> torch.device:
    """Where a module is computed: what is kept on the CPU beside a GPU comes to that for it."""
    at = next(
        place for part, place in places.items() if f"{name}.".startswith(f"{part}.") or not part
    )
    return torch.device("cuda", at) if isinstance(at, int) else home
