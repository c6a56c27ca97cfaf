"""Language models whose weights become int8 one by one as transformers reads them.

Never is more than one of them in memory as wide as it is computed with. The head is left as it is,
for tokens may still be added to it; `flamvid.weights.placement.quantise` sees to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = ["Int8OnLoad"]

_NAME = "flamvid_int8"


@register_quantization_config(_NAME)
class Int8OnLoad(QuantizationConfigMixin):  # type: ignore[misc]
    """transformers' `quantization_config`; make: puts another layer in a float one's place.

    make: given a linear layer with its weight, the layer to stand there, or None to leave it.
    """

    def __init__(self, make: Callable[[nn.Linear], nn.Module | None]) -> None:
        self.quant_method = _NAME
        self.make = make


@register_quantizer(_NAME)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    is_serializable = is_trainable = False

    def param_needs_quantization(self, model: Any, param_name: str, **__: Any) -> bool:
        path, _, leaf = param_name.rpartition(".")
        head = model.get_output_embeddings()
        layer = model.get_submodule(path)
        # Of a model without a head, such as a vision tower, nothing is.
        return leaf == "weight" and isinstance(layer, nn.Linear) and head not in (None, layer)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise(self.quantization_config.make)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.remove_quantization_config(model)  # of transformers' own kinds it is none
        return model


class _Quantise(ConversionOps):  # type: ignore[misc]
    def __init__(self, make: Callable[[nn.Linear], nn.Module | None]) -> None:
        self.make = make

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: Any, **about: Any
    ) -> dict[str, Tensor]:
        [held] = input_dict.values()
        weight: Tensor = held[0] if isinstance(held, list) else held
        path, _, _ = full_layer_name.rpartition(".")
        layer = model.get_submodule(path)
        if weight.shape != layer.weight.shape:
            return {}  # what is not there, is missing
        layer.weight = nn.Parameter(weight, requires_grad=False)
        made = self.make(layer)
        if made is not None:
            for parameter in made.parameters(recurse=False):  # or it would be drawn at random
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
            model.set_submodule(path, made)
        about["missing_keys"].discard(full_layer_name)
        return {}
