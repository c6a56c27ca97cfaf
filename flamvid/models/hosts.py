"""Language models that transformers builds, and the two that only others' own code does.

Apart from the rest, because importing transformers takes longer than the default model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.chinchilla import ChinchillaForCausalLM
from flamvid.models.decoder import register
from flamvid.models.frozen import CPU, blaming, frozen_from
from flamvid.models.mosaic import MosaicForCausalLM
from flamvid.models.palm import PalmForCausalLM

__all__ = ["causal_class", "lm_config_of", "lm_of", "load_host"]

for _causal in (ChinchillaForCausalLM, MosaicForCausalLM, PalmForCausalLM):
    register(_causal)


def load_host(folder: Path, dtype: torch.dtype, device: torch.device = CPU) -> PreTrainedModel:
    """The causal LM in a local folder; MPT-1B too, which only remote code knows elsewhere."""
    lm = frozen_from(AutoModelForCausalLM, folder, dtype, "causal language model", device)
    assert isinstance(lm, PreTrainedModel)
    return lm


def lm_of(table: Mapping[str, Any]) -> PreTrainedModel:
    """A causal LM, as initialised, of the architecture in a table such as a config.json holds."""
    lm = AutoModelForCausalLM.from_config(lm_config_of(table))
    assert isinstance(lm, PreTrainedModel)
    return lm


def lm_config_of(table: Mapping[str, Any]) -> Any:
    """The transformers configuration of such a table; `model_type` says which it is."""
    rest = {key: value for key, value in table.items() if key != "model_type"}
    try:
        with blaming("no causal language model is known for this"):
            made = AutoConfig.for_model(str(table.get("model_type", "")), **rest)
            causal_class(made)
    except WeightsError as error:
        raise ConfigError(str(error)) from error
    return made


def causal_class(config: Any) -> Any:
    """The class of causal LM that a transformers configuration is of; a KeyError if none."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
