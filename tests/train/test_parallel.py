"""Two processes train what one trains, whether each holds all of the model or a share of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamvid.errors import ConfigError
from flamvid.train.parallel import Parallel
from flamvid.train.world import World
from tests.train.processes import together
from tests.train.together import Job, train, train_all
from tests.train.toy import Linear

UPDATES = 20
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


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"run\.engine is 'zero'; must be one of ddp, fsdp"):
        Parallel(Linear(), World(), "zero")
