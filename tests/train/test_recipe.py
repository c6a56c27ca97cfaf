"""Recipes: what they say, and what is refused before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flamvid import config
from flamvid.errors import ConfigError
from flamvid.train.draw import Drawn, Inputs
from flamvid.train.plan import Plan
from flamvid.train.recipe import read_recipe
from flamvid.train.session import read
from flamvid.train.world import World
from tests.train.conftest import MakeRecipe

DATASETS = Path(__file__).parents[2] / "datasets"


def test_a_recipe_says_what_is_written(make_recipe: MakeRecipe, shards: Path) -> None:
    path = make_recipe("walls", steps=7, seed=3)
    recipe = read_recipe(path)
    assert (recipe.name, recipe.seed, recipe.captions.steps) == ("walls", 3, 7)
    assert (recipe.data.clips, recipe.data.stills) == (("clips-*.tar",), ("stills.tar",))
    assert recipe.path(recipe.data.root) == shards
    assert recipe.path("else.toml") == path.parent / "else.toml"


SHIPPED = [path for path in sorted(DATASETS.glob("*/*.toml")) if "lm" not in config.read_toml(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_that_ships_is_one(path: Path) -> None:
    recipe = read(path)
    assert recipe.corpora if isinstance(recipe, Plan) else recipe.data.clips


def test_changes(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = read_recipe(make_recipe(), ["seed=4", "captions.steps=3"], tmp_path)
    assert (recipe.seed, recipe.captions.steps, recipe.root) == (4, 3, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("warmup = 5", "warmpu = 5", r"captions has no key 'warmpu'; did you mean 'warmup'\?"),
        ("words = 8", "wrods = 8", r"words has no key 'wrods'; did you mean 'words'\?"),
        ("seed = 0", "sead = 0", r"has no key 'sead'; did you mean 'seed'\?"),
        ("stills = ", "still = ", r"data has no key 'still'; did you mean 'stills'\?"),
        ("[words]", "[wrods]", r"has no key 'wrods'; did you mean 'words'\?"),
        ("steps = 40\nbatch = 8", "steps = 0", "captions.steps is 0; must be above 0"),
        ("batch = 8", "batch = -1", "captions.batch is -1; must be above 0"),
        ("batch = 8", 'batch = "8"', "captions.batch is '8'; must be a whole number"),
        ("batch = 12", "batch = 0", "words.batch is 0; must be above 0"),
        ("learning_rate = 1e-2", "learning_rate = -1.0", "captions.learning_rate is -1.0"),
        ("save_every = 8", "save_every = 0", "captions.save_every is 0"),
        ("warmup = 5", 'schedule = "linear"', "schedule is 'linear'; must be cosine or constant"),
        ('"float32"', '"float16"', "precision is 'float16'; must be auto, float32 or bfloat16"),
        ("[data]", "[data]\nstills_share = 1.0", r"stills_share is 1\.0; must be in \[0, 1\)"),
        ("[data]", "[data]\nstills_share = -0.1", r"stills_share is -0\.1"),
        ('clips = ["clips-*.tar"]', "clips = []", "must name shards"),
        ('clips = ["clips-*.tar"]', "", r"data lacks clips; add what is missing"),
        # A string would else be taken letter by letter.
        ('["clips-*.tar"]', '"clips-*.tar"', "data.clips is 'clips-.*'; must be a list"),
        ('["stills.tar"]', '"stills.tar"', "data.stills is 'stills.tar'; must be a list"),
        (
            "batch = 12",
            "batch = 12\nfeature_dropout = 2",
            "words.feature_dropout is 2; must",
        ),
        ("warmup = 5", "warmup = -5", "optim.warmup is -5; must be at least 0"),
        ("[words]", "[words", "is not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(
    make_recipe: MakeRecipe, old: str, new: str, complaint: str
) -> None:
    path = make_recipe()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_recipe(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"parts\.toml has no \[data\] table"),
        ("data = 3", r"parts\.toml: data is 3; must be a table"),
        ("words = 3\n[data]", r"parts\.toml: words is 3; must be a table"),
        ("[data]\nclips = 3\nvalidation = 3", "data.clips is 3; must be a list"),
    ],
)
def test_a_recipe_without_its_parts(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "parts.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_recipe(tmp_path / "parts.toml")


def test_a_run_goes_on_with_the_same_samples_alone() -> None:
    def drawn(batch: int = 4, seed: int = 0, stills: int = 3) -> Drawn:
        return Drawn(lambda at, chance: Inputs("a", (), (), 0), batch, seed, World(), [5, stills])

    data = drawn()
    next(data)
    place = json.loads(json.dumps(data.state_dict()))
    for other, what in (
        (drawn(batch=8), "batch"),
        (drawn(seed=1), "seed"),
        (drawn(stills=4), "samples"),
    ):
        with pytest.raises(ConfigError, match=rf"stopped \({what}\); give the recipe"):
            other.resume([place])
    again = drawn()
    again.resume([place])
    assert again.state_dict() == place


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*none\.toml"):
        read_recipe(tmp_path / "none.toml")
