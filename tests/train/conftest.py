"""A tiny model, shards of coloured walls, and recipes to train the one on the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flamvid.weights.load import LoadedModel, load_model
from tests.tiny import make_model, write_colours

MakeRecipe = Callable[..., Path]
RECIPE = """
model = "{model}"
seed = {seed}
precision = "float32"

[data]
clips = ["clips-*.tar"]
stills = ["stills.tar"]
validation = ["validation.tar"]
root = "{root}"

[words]
steps = 40
batch = 12
words = 8

[captions]
steps = {steps}
batch = 8
warmup = 5
learning_rate = 1e-2
resampler_learning_rate = 1e-3
validate_every = 20
save_every = {save_every}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a tiny model's TOML; its prompts say what its encoder takes walls for."""
    toml = make_model(tmp_path_factory.mktemp("tiny"))
    toml.write_text(
        toml.read_text().replace("size = 64", "size = 64\nlabels = 2\nlabel_share = 0.0")
    )
    return toml


@pytest.fixture
def model(tiny: Path) -> LoadedModel:
    """The tiny model before training, the same whatever ran before."""
    torch.manual_seed(0)
    return load_model(str(tiny), trained=False)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards: clips of two and of four frames, stills, validation clips."""
    folder = tmp_path_factory.mktemp("shards")
    for seed, (name, count, frames) in enumerate(
        [("clips-0", 12, 2), ("clips-1", 12, 4), ("stills", 9, 1), ("validation", 6, 2)]
    ):
        write_colours(folder / f"{name}.tar", count, frames, seed)
    return folder


@pytest.fixture(scope="session")
def make_recipe(tiny: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRecipe:
    """make_recipe(name="walls", steps=40, save_every=8, seed=0) writes a recipe."""

    def make(name: str = "walls", steps: int = 40, save_every: int = 8, seed: int = 0) -> Path:
        path = tmp_path_factory.mktemp("recipe") / f"{name}.toml"
        keys = {"steps": steps, "save_every": save_every, "seed": seed}
        path.write_text(RECIPE.format(model=tiny, root=shards, **keys))
        return path

    return make
