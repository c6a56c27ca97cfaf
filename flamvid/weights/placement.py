"""Where a model's weights lie and in how many bits, by optional packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import int8_on_load
from flamvid.models.int8 import int8_of, make_int8
from flamvid.models.lm import layers_path

__all__ = ["int8_as_read", "quantise", "spread"]

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@contextmanager
def int8_as_read(own: bool) -> Iterator[None]:
    """A language model that is loaded meanwhile by transformers is int8 but for its head.

    Each weight becomes so as it is read; own: as of `quantise`, which does the rest.
    """
    with int8_on_load(int8_of if own else _torchao()):
        yield


def quantise(flamingo: Flamingo, own: bool) -> None:
    """The language model's and the new layers' weights to int8, in place, where they are not yet.

    own: on a CPU, by our own kernel, the head too; else by torchao, with a scale per row and the
    head as it is. Activations keep their dtype. Embeddings, norms and what comes before the
    language model, where weights are the least of the work, are left as they are.
    """
    parts = (flamingo.lm.lm, flamingo.lm.inserted)
    if own:
        for part in parts:
            make_int8(part)
        return
    narrow, head = _torchao(), flamingo.lm.lm.get_output_embeddings()
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear) and module is not head:
                narrow(module)


def _torchao() -> Callable[[nn.Linear], nn.Module]:
    """What makes a linear layer's weight int8 in place, once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise InputError(
            "dtype int8 needs torchao for anything but one CPU, and it is not installed; "
            "pip install 'flamvid[int8]', or use bf16"
        ) from error

    def narrow(layer: nn.Linear) -> nn.Linear:
        if type(layer.weight.data) is Tensor:  # and not torchao's own kind yet
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quantize_(layer, Int8WeightOnlyConfig(), filter_fn=lambda *_: True)
        return layer

    return narrow


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
