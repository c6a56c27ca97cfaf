"""Two processes train what one trains, whether each holds all of the model or a share of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamvid.errors import ConfigError
from flamvid.train.journal import read_journal
from flamvid.train.parallel import Parallel
from flamvid.train.world import World
from tests.tiny import encode, picture, write_tar
from tests.train.processes import together
from tests.train.together import Job, one_has_no_media, run_limited, run_plan, train, train_all
from tests.train.toy import Linear

UPDATES = 20
WALLS = """
[model]
name = "{model}"

[[corpus]]
name = "walls"
kind = "images"
sources = ["walls.tar"]
batch = 4
shuffle = 1
size = 32

[run]
steps = 3
precision = "float32"
cache = ""
"""
HELD_OUT = """
validate_every = 1

[[validation]]
name = "held-out"
kind = "images"
sources = ["held-out.tar"]
batch = 4
size = 32
max_bad = 0
"""
PAGES = """
[model]
name = "{model}"
start = "trained"
vision = "trained"
lora = 2

[[corpus]]
name = "pages"
kind = "interleaved"
sources = ["pages.tar"]
batch = 2
shuffle = 1
size = 64

[optim]
warmup = 1
learning_rate = 1e-3

[run]
steps = 3
log_every = 1
precision = "float32"
"""
Weights = dict[str, Tensor]


def load(path: Path) -> Weights:
    weights: Weights = torch.load(path, weights_only=True)
    return weights


def difference(one: Weights, other: Weights) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Weights]:
    """Weights after twenty updates, by how they came about."""
    at = tmp_path_factory.mktemp("together")
    alone = World()

    def job(name: str, engine: str, folder: str, until: int = UPDATES) -> Job:
        return engine, at / folder, until, at / f"{name}.pt"

    def one(name: str, folder: str, until: int = UPDATES) -> None:
        train(alone, *job(name, "ddp", folder, until))

    one("one", "whole")
    one("half", "one-two", UPDATES // 2)
    jobs = [
        job("ddp", "ddp", "ddp"),
        job("fsdp", "fsdp", "fsdp"),
        job("one then two", "fsdp", "one-two"),
        job("half of two", "fsdp", "two-one", UPDATES // 2),
        job("half of ddp", "ddp", "ddp-one", UPDATES // 2),
    ]
    together(2, train_all, jobs)
    one("two then one", "two-one")
    one("ddp then one", "ddp-one")
    return {path.stem: load(path) for path in at.glob("*.pt")}


@pytest.mark.parametrize("how", ["ddp", "fsdp", "one then two", "two then one", "ddp then one"])
def test_it_is_one_process_with_the_whole_batch(trained: dict[str, Weights], how: str) -> None:
    assert difference(trained[how], trained["one"]) < 1e-5
    assert difference(trained["half"], trained["one"]) > 1e-3  # updates do change the weights


def test_shared_weights_are_those_of_ddp(trained: dict[str, Weights]) -> None:
    assert difference(trained["fsdp"], trained["ddp"]) < 1e-5


def test_bad_samples_are_counted_over_all_processes(tiny: Path, tmp_path: Path) -> None:
    members = []
    for at in range(4):  # a batch; each process meets one that is bad
        data = b"no picture" if at in (0, 3) else encode(picture((60 * at, 9, 9)))
        members += [(f"{at}.webp", data), (f"{at}.txt", b"red paint")]
    write_tar(tmp_path / "walls.tar", members)
    recipe = tmp_path / "walls.toml"
    recipe.write_text(WALLS.format(model=tiny))
    said = {}
    for limit in (1, 2):
        out = tmp_path / f"limit-{limit}"
        together(2, run_limited, recipe, out, [f"corpus.walls.max_bad={limit}"])
        said[limit] = [(out / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[2] == ["after 3", "after 3"]
    assert len({*said[1]}) == 1  # neither is left waiting for the other
    assert said[1][0].startswith("corpus walls: 2 samples can't be read, max_bad is 1; the last is")
    for rank in (0, 1):
        place = tmp_path / "limit-2" / "step-00000003" / f"data-{rank}.json"
        assert len(json.loads(place.read_text())["bad"]["walls"]) == 2


def ends_of_both(recipe: Path, out: Path, changes: list[str]) -> list[str]:
    out.mkdir()
    together(2, run_limited, recipe, out, changes)
    return [(out / f"said-{rank}").read_text() for rank in (0, 1)]


def walls(path: Path, bad: int | None = None) -> None:
    members = []
    for at in range(4):
        data = b"no picture" if at == bad else encode(picture((60 * at, 9, 9)))
        members += [(f"{at}.webp", data), (f"{at}.txt", b"red paint")]
    write_tar(path, members)


def test_a_bad_validation_sample_of_one_process_ends_both_alike(tiny: Path, tmp_path: Path) -> None:
    walls(tmp_path / "walls.tar")
    walls(tmp_path / "held-out.tar", bad=3)
    recipe = tmp_path / "walls.toml"
    recipe.write_text(WALLS.format(model=tiny) + HELD_OUT)
    first, second = ends_of_both(recipe, tmp_path / "run", ["run.engine=fsdp"])
    assert first == second
    assert first.startswith("corpus held-out: 1 samples can't be read, max_bad is 0; the last is")


def test_a_batch_that_is_none_in_one_process_ends_both_alike(tiny: Path, tmp_path: Path) -> None:
    for at, width in enumerate((256, 256, 256, 128)):
        tensors = {
            "features": torch.zeros(1, 4, width, dtype=torch.float16),
            "counts": torch.ones(1, dtype=torch.int32),
        }
        about = {"ids": f'["{at}"]', "captions": '[["red paint"]]'}
        save_file(tensors, tmp_path / f"{at}.safetensors", metadata=about)
    recipe = tmp_path / "walls.toml"
    recipe.write_text(WALLS.format(model=tiny))
    changes = ["corpus.walls.kind=features", 'corpus.walls.sources=["*.safetensors"]']
    first, second = ends_of_both(recipe, tmp_path / "run", changes)
    assert first == second
    assert "a corpus's features must be of one encoder" in first


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_pages_without_pictures_are_what_they_are_beside_others(
    tiny: Path, tmp_path: Path, engine: str
) -> None:
    """One process has them in a batch with others, two have them apart; vision and LM learn."""
    pytest.importorskip("peft")
    members = []
    for at in range(4):
        table = {"texts": [f"the wall {at}"], "images": [None]}
        if at < 2:  # the first lane, and so the first process
            members.append((f"{at}.0.webp", encode(picture((99 * at, 200, 9)))))
            table = {"texts": [None, f"a red wall {at}"], "images": ["0.webp", None]}
        members.append((f"{at}.json", json.dumps(table).encode()))
    write_tar(tmp_path / "pages.tar", members)
    recipe = tmp_path / "pages.toml"
    recipe.write_text(PAGES.format(model=tiny))
    alone, both = tmp_path / "alone", tmp_path / engine
    run_plan(recipe, alone, [])
    together(2, run_plan, recipe, both, [f"run.engine={engine}"])
    losses = [[e["loss"]["pages"] for e in read_journal(out)] for out in (alone, both)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one, two = (load_file(next((out / "model").glob("*.safetensors"))) for out in (alone, both))
    assert difference(one, two) < 5e-4  # AdamW makes much of gradients that are almost nothing


def test_a_process_without_media_waits_for_none() -> None:
    together(2, one_has_no_media)


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"run\.engine is 'zero'; must be one of ddp, fsdp"):
        Parallel(Linear(), World(), "zero")
