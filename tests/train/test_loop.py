"""Whole runs on a tiny model: what they learn, and that no interruption shows in the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flamvid.api import load
from flamvid.errors import ConfigError, WeightsError
from flamvid.train.loop import run
from flamvid.weights.adapter import load_adapter
from flamvid.weights.load import load_model
from tests.tiny import WORDS, picture
from tests.train.conftest import MakeRecipe

Log = Callable[[str], None]


def silent(_: str) -> None:
    pass


def stop_at(start: str) -> Log:
    """A log that ends the run where a line begins so."""

    def log(line: str) -> None:
        if line.startswith(start):
            raise KeyboardInterrupt

    return log


def same(one: Path, other: Path) -> bool:
    (ours, _), (theirs, _) = load_adapter(one), load_adapter(other)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def checkpoints(out: Path) -> list[str]:
    return sorted(f.name for f in out.glob("step-*"))


@pytest.fixture(scope="module")
def whole(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a run that nobody interrupted."""
    return run(make_recipe(), None, tmp_path_factory.mktemp("whole") / "run", True, silent)


def test_a_run_learns_to_name_what_it_sees(
    make_recipe: MakeRecipe, tiny: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    adapter = run(make_recipe(steps=120), None, tmp_path / "run", True, lines.append)
    toml = tmp_path / "trained.toml"
    toml.write_text(tiny.read_text().replace('"tiny.safetensors"', f'"{adapter}"'))
    captioner = load(str(toml), device="cpu")
    for i, word in enumerate(WORDS):
        Image.fromarray(picture(np.eye(3, dtype=int)[i] * 180)).save(tmp_path / "wall.png")
        [made] = captioner.caption(tmp_path / "wall.png")
        assert word in made.text.split()
        assert not {*WORDS} - {word} & set(made.text.split())

    # Progress says how it goes, and how fast.
    assert "24 clips, 9 stills, 6 validation" in lines
    assert any(
        re.fullmatch(r"words 40/40 loss [\d.]+ validation [\d.]+ \d+ media/s", x) for x in lines
    )
    numbers = r"captions 120/120 loss [\d.]+ norm [\d.]+ rate 0\.000 [\d.]+ captions/s"
    assert any(re.fullmatch(numbers, line) for line in lines)
    losses = [float(line.split()[-1]) for line in lines if line.startswith("validation ")]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 2


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    command = [sys.executable, "-m", "flamvid", "train", str(recipe), "--out", str(out)]
    # Another number of threads could round otherwise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        deadline = time.monotonic() + 120
        while not (out / "step-000008.pt").exists():
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert "step-000040.pt" not in checkpoints(out)

    lines: list[str] = []
    adapter = run(recipe, None, out, True, lines.append)
    assert any(line.startswith(f"resumed from {out / 'step-'}") for line in lines)
    assert not any(line.startswith("words ") for line in lines)
    assert same(adapter, whole)
    assert load_model(str(recipe_model(recipe, adapter))).head is not None


def recipe_model(recipe: Path, adapter: Path) -> Path:
    """A model's TOML with the adapter that a run of the recipe made."""
    [model] = re.findall(r'model = "(.*)"', recipe.read_text())
    toml = adapter.with_name("trained.toml")
    toml.write_text(Path(model).read_text().replace('"tiny.safetensors"', f'"{adapter}"'))
    return toml


@pytest.mark.parametrize(
    "where", ["features of", "24 clips", "words 40/40", "captions 10/40", "validation 40/40"]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path, where: str
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(recipe, None, out, True, stop_at(where))
    assert same(run(recipe, None, out, True, silent), whole)


def test_a_run_that_is_done_is_not_done_again(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    adapter = run(recipe, None, out, True, silent)
    assert checkpoints(out) == ["step-000032.pt", "step-000040.pt"]
    adapter.unlink()  # as when it is killed between the last checkpoint and the adapter
    lines: list[str] = []
    assert run(recipe, None, out, True, lines.append) == adapter
    assert not any(line.startswith(("words", "captions", "features")) for line in lines)
    assert same(adapter, whole)


def test_a_fresh_run_forgets_the_one_before(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    old = run(make_recipe(steps=24), None, out, True, silent)
    recipe = make_recipe(steps=16, seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, None, out, False, stop_at("captions 10/16"))
    assert checkpoints(out) == ["step-000008.pt"]
    fresh = run(recipe, None, out, True, silent)
    clean = run(recipe, None, tmp_path / "clean", True, silent)
    assert same(fresh, clean)
    assert fresh == old


def test_features_are_computed_once_and_shared_by_runs(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    logs: dict[str, list[str]] = {"one": [], "two": []}
    for name, lines in logs.items():
        run(make_recipe(steps=1), None, tmp_path / name, True, lines.append)
    computed = [[x for x in lines if x.startswith("features of")] for lines in logs.values()]
    assert [len(lines) for lines in computed] == [4, 0]
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_the_shards_of_another_folder(
    make_recipe: MakeRecipe, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for shard in ("clips-0.tar", "stills.tar", "validation.tar"):
        (tmp_path / "data" / shard).symlink_to(shards / shard)
    lines: list[str] = []
    run(make_recipe(steps=1), tmp_path / "data", tmp_path / "run", True, lines.append)
    assert "12 clips, 9 stills, 6 validation" in lines
    with pytest.raises(ConfigError, match=r"no shard matches 'clips-\*\.tar'"):
        run(make_recipe(steps=1), tmp_path, tmp_path / "run", True, silent)


def test_the_adapter_says_where_it_comes_from(whole: Path, make_recipe: MakeRecipe) -> None:
    tensors, said = load_adapter(whole)
    assert said["step"] == 40
    assert said["recipe"]["captions"]["batch"] == 8
    tokens = {"bos": "<bos>", "media": "<media>", "end": "<end>"}
    assert said["model"]["tokens"].items() >= tokens.items()
    vocabulary = tensors.pop("vocabulary")
    assert vocabulary.tolist() == sorted(set(vocabulary.tolist()))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("name", ["words.pt", "step-000040.pt"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_checkpoint_that_does_not_fit_is_one_line(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if content is None:
        torch.save({"of another": torch.ones(1)}, out / name)
    else:
        (out / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} does not fit this run.*--fresh") as raised:
        run(make_recipe(), None, out, True, silent)
    assert "\n" not in str(raised.value)
    run(make_recipe(steps=1), None, out, False, silent)


def test_a_checkpoint_runs_no_code(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    torch.save({"step": Unpickled(tmp_path / "ran")}, out / "step-000008.pt")
    with pytest.raises(WeightsError, match="does not fit this run"):
        run(make_recipe(), None, out, True, silent)
    assert not (tmp_path / "ran").exists()


class Unpickled:
    """Touches a file when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)
