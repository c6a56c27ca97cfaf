"""Snapshots are whole or absent, and say what is wrong with them."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from flamvid.errors import WeightsError
from flamvid.train.objective import Objective
from flamvid.train.optimizer import OptimConfig, make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.snapshot import Snapshots
from flamvid.train.update import Updater
from flamvid.train.world import World
from tests.train.processes import start
from tests.train.toy import MEDIA, make_batch, make_flamingo

Parts = tuple[Parallel, torch.optim.Optimizer]


def make(layers: int = 3) -> Parts:
    parallel = Parallel(Objective(make_flamingo(layers=layers), MEDIA), World())
    optimizer = make_optimizer(parallel.trained(), OptimConfig())
    Updater(parallel, optimizer, {"pages": 1.0}, 1.0)([make_batch()])
    return parallel, optimizer


def save(at: Snapshots, step: int, parts: Parts) -> Path:
    return at.save(step, *parts, data={"updates": step})


def test_all_comes_back(tmp_path: Path) -> None:
    parts, at = make(), Snapshots(tmp_path)
    path = save(at, 3, parts)
    other = make()
    with torch.no_grad():
        for _, parameter in other[0].trained():
            parameter.zero_()
    state, data = at.restore(path, *other)
    assert (state["step"], state["adam"], data) == (3, 1, [{"updates": 3}])
    for (name, mine), (_, theirs) in zip(parts[0].trained(), other[0].trained(), strict=True):
        assert torch.equal(mine, theirs), name
        for key, value in parts[1].state[mine].items():
            assert torch.equal(value, other[1].state[theirs][key]), name


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    parts, at = make(), Snapshots(tmp_path, keep=2)
    at.mark_best(save(at, 1, parts), 0.5)
    for step in (2, 3, 4):
        save(at, step, parts)
    assert [p.name[-1] for p in at.all()] == ["1", "3", "4"]
    at.mark_best(tmp_path / "step-00000004", 0.4)
    assert [p.name[-1] for p in at.all()] == ["3", "4"]
    at.clear()
    assert at.latest() is None
    assert at.best() is None


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    at = Snapshots(tmp_path)
    path = save(at, 1, make())
    with pytest.raises(WeightsError, match=r"is of another model or recipe: exp_avg\.xattn\.2"):
        at.restore(path, *make(layers=5))
    shard = next(path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"is damaged: .*; remove it") as caught:
        at.restore(path, *make())
    assert "\n" not in str(caught.value)
    (path / "state.json").unlink()
    with pytest.raises(WeightsError, match="is damaged"):
        at.restore(path, *make())


def _fill_the_disk(folder: Path) -> None:
    """What the kernel says of a file past this process's limit is what it says of a full disk."""
    parts, at = make(), Snapshots(folder)
    first = save(at, 1, parts)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(WeightsError) as caught:
        save(at, 2, parts)
    said = str(caught.value)
    assert "\n" not in said
    assert os.strerror(errno.EFBIG) in said
    assert f"{first} is whole: make room, and give the command again" in said
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    at.restore(first, *make())


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    process = start(_fill_the_disk, tmp_path)
    process.join(60)
    assert process.exitcode == 0
