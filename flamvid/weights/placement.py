"""In how many bits a model's weights lie, by optional packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import int8_on_load
from flamvid.models.int8 import int8_of, make_int8

__all__ = ["int8_as_read", "quantise"]


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
        # and not torchao's own kind yet, nor laid elsewhere until it is wanted
        if type(layer.weight.data) is Tensor and not layer.weight.is_meta:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quantize_(layer, Int8WeightOnlyConfig(), filter_fn=lambda *_: True)
        return layer

    return narrow
