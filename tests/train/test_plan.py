"""General recipes: what is read, changed and refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from flamvid import config
from flamvid.errors import ConfigError, InputError
from flamvid.train.plan import Plan, read_plan

MIXTURES = sorted((Path(__file__).parents[2] / "datasets" / "mixtures").glob("*.toml"))
CORPUS = '[[corpus]]\nname = "clips"\nkind = "frames"\nsources = ["a.tar"]\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    held_out = CORPUS.replace("corpus", "validation")
    path.write_text(CORPUS + CORPUS.replace("clips", "pages") + held_out)
    return path


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_the_papers_mixtures_are_recipes(path: Path) -> None:
    assert read_plan(path).corpora


def test_defaults_are_the_papers(recipe: Path) -> None:
    plan = read_plan(recipe)
    optim = plan.optim
    assert (optim.learning_rate, optim.warmup, optim.schedule) == (1e-4, 5000, "constant")
    assert (optim.weight_decay, optim.clip, optim.lm_share) == (0.1, 1.0, 0.1)
    assert (plan.run.steps, plan.run.mixing) == (500_000, "accumulate")


def test_what_it_prints_is_the_same_recipe(recipe: Path, tmp_path: Path) -> None:
    plan = read_plan(recipe, ["optim.warmup=7", "run.wandb=my project"])
    printed = tmp_path / "printed.toml"
    printed.write_text(config.to_toml(plan.table()))
    assert "[[corpus]]" in printed.read_text()
    assert read_plan(printed).table() == plan.table()


def mixed(tmp_path: Path, **weights: float) -> str:
    """The path of a model with a mixture: flamingo-3b with another."""
    table = config.read_toml(Path(str(resources.files("flamvid.presets") / "flamingo-3b.toml")))
    path = tmp_path / "model.toml"
    mixture = {"weights": weights, "mixing": "round-robin"}
    path.write_text(config.to_toml({**table, "mixture": mixture}))
    return f"model.name={path}"


def test_what_it_does_not_say_is_the_mixture_of_its_model(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + CORPUS.replace("clips", "VTP"))
    model = mixed(tmp_path, Clips=0.3, pages=0.4, more=1)
    plan = read_plan(recipe, [model])
    assert {c.name: c.weight for c in plan.corpora} == {"clips": 0.3, "pages": 0.4}
    assert plan.run.mixing == "round-robin"
    assert plan.validation == read_plan(recipe).validation
    printed = tmp_path / "printed.toml"
    printed.write_text(config.to_toml(plan.table()))
    assert read_plan(printed).table() == plan.table()

    said = ["corpus.pages.weight=1", "corpus.VTP.weight=0.5", "run.mixing=accumulate"]
    plan = read_plan(recipe, [model, *said])
    assert {c.name: c.weight for c in plan.corpora} == {"clips": 0.3, "pages": 1, "VTP": 0.5}
    assert plan.run.mixing == "accumulate"


def test_a_mixture_that_a_recipe_does_not_fit(recipe: Path, tmp_path: Path) -> None:
    model = mixed(tmp_path, M3W=1, pages=0.4)
    with pytest.raises(
        ConfigError,
        match=r"corpus 'clips' has no weight, and is not in the mixture of .*model\.toml "
        r"\(M3W 1, pages 0\.4; round-robin\); give it a weight, or leave it out",
    ):
        read_plan(recipe, [model])
    with pytest.raises(ConfigError, match="none of its corpora is in the mixture"):
        read_plan(MIXTURES[0].parent / "of-the-model.toml", [mixed(tmp_path, mine=1)])


def test_changes(recipe: Path) -> None:
    plan = read_plan(
        recipe, ["corpus.pages.weight=0.5", "corpus.*.batch=3", "run.engine=fsdp", "model.lora = 4"]
    )
    assert [(c.weight, c.batch) for c in plan.corpora] == [(1.0, 3), (0.5, 3)]
    assert (plan.run.engine, plan.model.lora) == ("fsdp", 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("warmup=3", "has no key 'warmup'"),
        ("run.steps.first=3", "must be a whole number"),
        ("optim.warmup", "must be table.key=value"),
        ("corpus.videos.weight=1", "no corpus is so called; there are clips, pages"),
        ("optim.warmpu=3", "did you mean 'warmup'"),
        ("optim.warmup=soon", "must be a whole number"),
        ("optim.clip=0", "must be above 0"),
        ("run.mixing=random", "must be one of accumulate, round-robin"),
        ("corpus.clips.nam=x", "did you mean 'name'"),
        ("model.vision=thawed", r"must be \('frozen', 'trained'\)"),
        ("run.device=tpu", "must be auto, cpu, cuda or cuda:N"),
        ("run.seed=-1", "must be at least 0"),
        ("root=/tmp", "has no key 'root'; known: model, optim, run, corpus, validation"),
        ("corpora=[]", "has no key 'corpora'; did you mean 'corpus'"),
    ],
)
def test_what_is_wrong_is_said(recipe: Path, change: str, said: str) -> None:
    with pytest.raises((ConfigError, InputError), match=said):
        read_plan(recipe, [change])


def test_a_corpus_is_changed_by_a_name_with_dots(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('"clips"', '"clips.v2"'))
    plan = read_plan(recipe, ["corpus.clips.v2.weight=0.25"])
    assert [c.weight for c in plan.corpora if c.name == "clips.v2"] == [0.25]


def test_a_recipe_needs_corpora_with_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nsteps = 3\n")
    with pytest.raises(ConfigError, match=r"has no \[\[corpus\]\] table"):
        read_plan(path)
    path.write_text(CORPUS + CORPUS)
    with pytest.raises(ConfigError, match="two corpora are called 'clips'"):
        read_plan(path)


def test_fine_tuning_is_the_papers_but_for_what_the_recipe_says(recipe: Path) -> None:
    plan = read_plan(recipe).fine_tuned()
    assert (plan.model.start, plan.model.vision, plan.model.size) == ("trained", "trained", 480)
    assert plan.optim.learning_rate == 1e-5
    assert {corpus.size for corpus in (*plan.corpora, *plan.validation)} == {480}
    said: Plan = read_plan(recipe, ["optim.learning_rate=3e-6", "model.size=320"]).fine_tuned()
    assert (said.optim.learning_rate, said.model.size) == (3e-6, 320)


def test_vision_can_not_learn_from_features(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus clips holds features, but model\.vision"):
        read_plan(recipe, ["corpus.clips.kind=features", "model.vision=trained"])
