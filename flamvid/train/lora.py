"""Low-rank changes to a frozen language model (Hu et al. 2021, arXiv 2106.09685), by peft."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from flamvid.errors import ConfigError
from flamvid.models.lm import LanguageModel, decoder_layers

__all__ = ["add_lora", "merge_lora"]


def add_lora(lm: LanguageModel, rank: int) -> None:
    """Let every linear layer of the decoder layers learn a change of this rank.

    Raises ConfigError where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("--lora needs the package peft; pip install 'flamvid[train]'") from error
    names = {
        name.rpartition(".")[2]
        for name, module in decoder_layers(lm.lm).named_modules()
        if isinstance(module, nn.Linear)
    }
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no transformers model is wrapped
        inject_adapter_in_model(config, lm.lm)


def merge_lora(lm: LanguageModel) -> None:
    """Make the changes part of the weights, and the layers what they were."""
    for parent in list(lm.lm.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer") and hasattr(child, "merge"):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
