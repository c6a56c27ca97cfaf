"""A run that is killed, in an update or in writing a snapshot, ends as if it had not been."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.train.killed import train
from tests.train.processes import start, writing

STEPS, KILLS = 40, 10


def begin(out: Path) -> BaseProcess:
    out.mkdir(exist_ok=True)
    return start(train, out, STEPS)


def finish(out: Path) -> dict[str, torch.Tensor]:
    process = begin(out)
    process.join(120)
    assert process.exitcode == 0
    weights: dict[str, torch.Tensor] = torch.load(out / "final.pt", weights_only=True)
    return weights


def seen(out: Path) -> list[list[str]]:
    """What each update that counted saw: of those that were made twice, the later."""
    updates: list[list[str]] = []
    for line in (out / "seen.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert entry["update"] <= len(updates)
        updates[entry["update"] :] = [entry["keys"]]
    return updates


def seen_lines(out: Path) -> int:
    file = out / "seen.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    out = tmp_path_factory.mktemp("whole")
    return finish(out), seen(out)


def test_ten_kills_change_nothing(
    whole: tuple[dict[str, torch.Tensor], list[list[str]]], tmp_path: Path
) -> None:
    rng, killed = random.Random(0), Counter[str]()
    while killed.total() < KILLS:
        before, since, process = seen_lines(tmp_path), time.time(), begin(tmp_path)
        if killed.total() % 2:
            while process.is_alive() and seen_lines(tmp_path) == before:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        else:
            while process.is_alive() and not writing(tmp_path, since):
                pass
        process.kill()
        process.join()
        assert process.exitcode == -9  # or the run was over before it was killed
        killed["writing" if writing(tmp_path, since) else "update"] += 1
    assert killed["writing"] >= 2
    assert killed["update"] >= 2

    weights = finish(tmp_path)
    wanted, updates = whole
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert seen(tmp_path) == updates
    assert len({key for keys in updates for key in keys}) == STEPS * 2 * 4


def test_sigterm_saves_and_ends(
    whole: tuple[dict[str, torch.Tensor], list[list[str]]], tmp_path: Path
) -> None:
    process = begin(tmp_path)
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text():
        time.sleep(0.005)
    process.terminate()
    process.join(60)
    done = len((tmp_path / "log.jsonl").read_text().splitlines())
    assert done < STEPS
    assert (tmp_path / f"step-{done:08d}" / "state.json").exists()
    weights = finish(tmp_path)
    assert all(torch.equal(weights[name], wanted) for name, wanted in whole[0].items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
