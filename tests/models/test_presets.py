"""Presets of released models, on the meta device, against what their files are known to hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import flamvid
from flamvid.config import read_toml
from flamvid.errors import ConfigError
from flamvid.models.build import model_config, preset_names, read_model_config, skeleton
from flamvid.train.plan import read_plan
from flamvid.weights.formats import FORMATS

PRESETS = Path(flamvid.__file__).parent / "presets"
MIXTURE_RECIPES = Path(__file__).parents[2] / "datasets" / "mixtures"

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


MIXTURES = {
    "flamingo-3b": ("all", "M3W ALIGN LTIP VTP"),
    "flamingo-3b-without-video": ("without-video", "M3W ALIGN LTIP"),
    "flamingo-3b-without-images": ("without-images", "M3W VTP"),
    "flamingo-3b-laion": ("laion", "M3W LAION VTP"),
    "flamingo-3b-without-m3w": ("without-pages", "ALIGN LTIP VTP"),
    "flamingo-3b-round-robin": ("round-robin", "M3W ALIGN LTIP VTP"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_rows_about_data_are_flamingo_3b_with_another_mixture(name: str) -> None:
    """The paper, section 2.4 and table 3; and the recipe with open corpora says the same."""
    recipe, corpora = MIXTURES[name]
    config, paper = read_model_config(name), {"M3W": 1.0, "VTP": 0.03}
    assert config.mixture is not None
    assert dict(config.mixture.weights) == {c: paper.get(c, 0.2) for c in corpora.split()}
    plan = read_plan(MIXTURE_RECIPES / f"{recipe}.toml")
    assert [c.weight for c in plan.corpora] == list(config.mixture.weights.values())
    assert plan.run.mixing == config.mixture.mixing
    left = read_plan(MIXTURE_RECIPES / "of-the-model.toml", [f"model.name={name}"])
    assert left.corpora == plan.corpora
    assert left.run == plan.run
    whole = read_model_config("flamingo-3b")
    assert replace(config, name=whole.name, mixture=whole.mixture) == whole


@pytest.mark.parametrize(
    ("mixture", "complaint"),
    [
        ({"weights": {"M3W": 0}}, r"mixture\.weights\.M3W is 0; must be above 0"),
        ({"weights": {"M3W": 1}, "mixing": "turns"}, "mixing is 'turns'; must be accumulate or"),
        ({"wieghts": {}}, "did you mean 'weights'"),
    ],
)
def test_a_mixture_that_is_none(mixture: dict[str, Any], complaint: str) -> None:
    whole = read_toml(PRESETS / "flamingo-3b.toml")
    with pytest.raises(ConfigError, match=complaint):
        model_config({**whole, "mixture": mixture}, "mine", ".")
