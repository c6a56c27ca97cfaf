"""`flamvid train` killed at any moment, and given again, ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import wait_for
from tests.tiny import caption, encode, make_model, picture, write_colours, write_tar
from tests.train.processes import writing
from tests.train.recipes import write_recipe

STEPS = 40
CORPORA = """
[[corpus]]
name = "clips"
kind = "frames"
sources = ["clips-*.tar"]
batch = 3
frames = 2
size = 32
flip = 0.0
jitter = 0.0

[[corpus]]
name = "walls"
kind = "images"
sources = ["walls.tar"]
weight = 0.3
batch = 4
size = 32
shuffle = 4
"""
RUN = f"""
steps = {STEPS}
seed = 5
workers = 2
validate_every = 6
validation_batches = 1
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two shards of clips, and of pictures of which one can't be read."""
    folder = tmp_path_factory.mktemp("recipe")
    for seed, (name, count) in enumerate([("clips-0", 7), ("clips-1", 4), ("held-out", 3)]):
        write_colours(folder / f"{name}.tar", count, 3, seed)
    members = []
    for at in range(9):
        data = encode(picture((20 * at, 90, 0))) if at != 4 else b"no picture"
        members += [(f"{at}.webp", data), (f"{at}.txt", caption("red", at % 4).encode())]
    write_tar(folder / "walls.tar", members)
    return write_recipe(folder / "mine.toml", make_model(folder), CORPORA, RUN)


def begin(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flamvid", "train", str(recipe), f"--out={out}", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )


def finish(recipe: Path, out: Path) -> None:
    with begin(recipe, out) as child:
        assert child.wait(240) == 0


def snapshot(out: Path) -> dict[str, Tensor]:
    """Weights and moments at the end."""
    files = (out / f"step-{STEPS:08}").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def journal(out: Path) -> list[tuple[Any, ...]]:
    """What follows from the samples of an update and the weights before it: no speeds."""
    path = out / "log.jsonl"
    entries = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return [(e["step"], e.get("loss"), e.get("norm"), e.get("validation")) for e in entries]


def last(out: Path) -> int:
    """The last update of the journal."""
    return max((entry[0] for entry in journal(out)), default=0)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(recipe, out)
    return out


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_no_kill_shows_in_the_end(recipe: Path, whole: Path, tmp_path: Path, kills: int) -> None:
    rng, out, half_written = random.Random(kills), tmp_path / "run", 0
    for kill in range(kills):
        with begin(recipe, out) as child:
            since, deadline = time.time(), time.monotonic() + 600
            reached = last(out)
            while last(out) <= reached:  # or kills at the same place would follow each other
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if kill % 2:  # in a snapshot, as the others are in an update
                while not writing(out, since):
                    assert child.poll() is None
                    time.sleep(0.001)
            else:
                time.sleep(rng.uniform(0, 0.1))
            child.kill()
        assert child.returncode == -9
        half_written += writing(out, since)
    assert half_written
    assert not (out / "model.toml").exists()

    finish(recipe, out)
    ours, wanted = snapshot(out), snapshot(whole)
    assert ours.keys() == wanted.keys()
    assert any(name.startswith("exp_avg.") for name in ours)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    for name in ("model.toml", "adapter.safetensors", "best.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    # Every update is there once, and had the loss that its own samples have.
    assert journal(out) == journal(whole)
    steps = [step for step, loss, *_ in journal(out) if loss]
    assert steps == list(range(1, STEPS + 1))
    told = (out / "unreadable.jsonl").read_text()
    assert told == (whole / "unreadable.jsonl").read_text()
    assert len(told.splitlines()) == 1


def group(child: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a child's group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone by now
            state, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            found += [int(stat.parent.name)] if of == str(child.pid) and state != "Z" else []
    return found


def reach(update: int, out: Path, child: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: last(out) >= update, child)
    assert len(group(child)) == 3  # with its two workers


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_ends_the_run_after_a_snapshot(
    recipe: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    out = tmp_path / "run"
    with begin(recipe, out) as child:
        reach(1, out, child)
        os.killpg(child.pid, signum)
        assert child.wait(60) == 130
    assert group(child) == []
    assert last(out) < STEPS
    assert (out / f"step-{last(out):08}" / "state.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_outlive_no_run(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with begin(recipe, out) as child:
        reach(1, out, child)
        child.kill()
    deadline = time.monotonic() + 60
    while group(child):
        assert time.monotonic() < deadline
        time.sleep(0.1)
