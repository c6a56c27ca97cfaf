"""Presets of released models, on the meta device, against what their files are known to hold."""

from __future__ import annotations

import pytest
import torch

from flamvid.models.build import preset_names, read_model_config, skeleton
from flamvid.weights.formats import FORMATS

# Parameters in the released file: what is trained, and the embeddings (of NeoX, the head too).
HELD = {
    "openflamingo-3b": 1_046_992_944,
    "openflamingo-3b-langinstruct": 1_046_992_944,
    "openflamingo-9b": 1_384_781_840,
    "openflamingo-9b-deprecated": 1_309_919_248,
}
TOTAL = {"idefics-9b": 8.93e9, "idefics-80b": 79.97e9, "openflamingo-4b": 4.0e9}


@pytest.mark.parametrize("name", HELD)
def test_as_many_parameters_as_the_release(name: str) -> None:
    model = skeleton(read_model_config(name))
    trained = sum(p.numel() for _, p in model.trained())
    assert trained + model.lm.lm.get_input_embeddings().weight.numel() == HELD[name]


@pytest.mark.parametrize("name", TOTAL)
def test_totals(name: str) -> None:
    model = skeleton(read_model_config(name))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(TOTAL[name], rel=0.01)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_without_memory(name: str) -> None:
    config = read_model_config(name)
    assert config.format in FORMATS
    model = skeleton(config)
    assert {p.device for p in model.parameters()} == {torch.device("meta")}


@pytest.mark.parametrize("name", ["otter-image", "otter-video"])
def test_otter_sees_pictures_as_in_its_training(name: str) -> None:
    """Luodian/Otter, pipeline/mimicit_utils/mimicit_dataset.py: RandomResize([(224, 224)])."""
    look = read_model_config(name).vision
    assert (look.size, look.resize, look.interpolation) == (224, "squash", "bicubic")
    assert (look.mean, look.std) == ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276))
