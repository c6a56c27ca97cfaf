"""Whole runs on frozen features: what they learn, and that no interruption shows in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flamvid.api import load
from flamvid.errors import ConfigError, InputError, WeightsError
from flamvid.train import session
from flamvid.train.journal import read_journal
from flamvid.train.recipe import Recipe, read_recipe
from flamvid.train.trainer import Report
from flamvid.weights.adapter import load_adapter
from flamvid.weights.load import load_model
from tests.tiny import WORDS, picture
from tests.train.conftest import MakeRecipe
from tests.train.processes import together
from tests.train.together import run_noting

Log = Callable[[str], None]


def run(
    recipe: Path, out: Path, resume: bool = True, log: Log = lambda _: None, **keys: Any
) -> Path:
    """The model's TOML that a run to its end leaves."""
    result = session.run(session.read(recipe), out, resume, log, **keys).result
    assert result is not None
    return result


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_adapter(toml.with_name("adapter.safetensors"))[0] for toml in (one, other))
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def snapshots(out: Path) -> list[int]:
    return sorted(int(f.name[5:]) for f in out.glob("step-*"))


@pytest.fixture(scope="module")
def whole(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that nobody interrupted."""
    return run(make_recipe(), tmp_path_factory.mktemp("whole") / "run")


def test_a_run_learns_to_name_what_it_sees(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    lines: list[str] = []
    reports: list[Report] = []
    out = tmp_path / "run"
    result = run(make_recipe(steps=120), out, log=lines.append, watch=reports.append)
    captioner = load(str(result), device="cpu")
    for i, word in enumerate(WORDS):
        Image.fromarray(picture(np.eye(3, dtype=int)[i] * 180)).save(tmp_path / "wall.png")
        [made] = captioner.caption(tmp_path / "wall.png")
        assert word in made.text.split()
        assert not {*WORDS} - {word} & set(made.text.split())

    assert "24 clips, 9 stills, 6 validation" in lines
    of = {name: [r for r in reports if name in r.losses] for name in ("words", "captions")}
    assert [(r.step, r.steps) for r in of["words"]] == [(40, 40)]
    assert [(r.step, r.steps) for r in of["captions"]] == [(10 * n, 120) for n in range(1, 13)]
    assert all(r.samples_per_second > 0 for r in reports)
    held_out = [e["validation"]["captions"] for e in read_journal(out) if "validation" in e]
    assert len(held_out) == 6
    assert held_out[-1] < held_out[0] / 2
    [words] = [e["validation"]["words"] for e in read_journal(out / "words") if "validation" in e]
    assert words > 0


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    command = [sys.executable, "-m", "flamvid", "train", str(recipe), "--out", str(out)]
    # Another number of threads could round otherwise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        deadline = time.monotonic() + 120
        while not (out / "step-00000008").exists():
            assert child.poll() is None, child.stderr and child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert 40 not in snapshots(out)

    lines: list[str] = []
    reports: list[Report] = []
    result = run(recipe, out, log=lines.append, watch=reports.append)
    assert any(line.startswith(f"resumed from {out / 'step-'}") for line in lines)
    assert not any("words" in report.losses for report in reports)
    assert same(result, whole)
    assert load_model(str(result)).head is not None


@pytest.mark.parametrize("where", ["features of", "24 clips", "resumed"])
def test_a_run_that_broke_off_goes_on_as_if_nothing_had_been(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path, where: str
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    if where == "resumed":
        stopped(recipe, out, "captions", 10)

    def log(line: str) -> None:
        if line.startswith(where):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, log=log)
    assert same(run(recipe, out), whole)


def stopped(recipe: Path, out: Path, stage: str, step: int) -> session.Outcome:
    """A run that SIGTERM ends after a stage's report of an update."""

    def watch(report: Report) -> None:
        if stage in report.losses and report.step == step:
            signal.raise_signal(signal.SIGTERM)

    outcome = session.run(session.read(recipe), out, True, lambda _: None, watch)
    assert outcome.result is None
    return outcome


@pytest.mark.parametrize("step", [10, 20])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path, step: int
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    assert stopped(recipe, out, "captions", step).step == step + 1
    assert snapshots(out)[-1] == step + 1
    assert same(run(recipe, out), whole)


def test_a_run_that_is_done_is_not_done_again(
    make_recipe: MakeRecipe, whole: Path, tmp_path: Path
) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    result = run(recipe, out)
    assert snapshots(out) == [32, 40]
    result.with_name("adapter.safetensors").unlink()  # as when it is killed just before it
    reports: list[Report] = []
    assert run(recipe, out, watch=reports.append) == result
    assert not reports
    assert same(result, whole)


def test_a_fresh_run_forgets_the_one_before(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(make_recipe(steps=24), out)
    recipe = make_recipe(steps=16, seed=1)

    def log(line: str) -> None:
        if line.startswith("validation"):  # of the words
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out, resume=False, log=log)
    assert snapshots(out) == []
    run(recipe, out, resume=False)
    assert snapshots(out) == [8, 16]
    assert same(out / "model.toml", run(recipe, tmp_path / "clean"))


def test_a_fresh_run_that_cannot_begin_costs_nothing(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(make_recipe(steps=8), out)
    recipe = make_recipe(steps=8)
    recipe.write_text(recipe.read_text().replace("stills.tar", "no-such.tar"))
    with pytest.raises(ConfigError, match="no shard matches"):
        run(recipe, out, resume=False)
    assert snapshots(out) == [8]


def test_every_sample_is_seen_once_an_epoch(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Six rows of eight are clips, of which two shards have twelve each, by the same names."""
    seen: list[tuple[str, ...]] = []
    trained = session.attempt

    def noting(trainer: Any, *rest: Any) -> Any:
        make = trainer.data.make

        def noted(*args: Any) -> Any:
            inputs = make(*args)
            if inputs.corpus == "captions":
                seen.append(inputs.keys[::2])
            return inputs

        trainer.data.make = noted
        return trained(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "attempt", noting)
        run(make_recipe(steps=9), tmp_path / "run")
    clips = Counter(key for keys in seen[:8] for key in keys[:6])
    assert len(clips) == 12
    assert set(clips.values()) == {4}
    stills = Counter(key for keys in seen for key in keys[6:])
    assert len(stills) == 9
    assert set(stills.values()) == {2}


@pytest.mark.parametrize("kind", ["captions", "contrastive"])
def test_of_two_processes_the_first_writes(
    make_recipe: MakeRecipe, tmp_path: Path, kind: str
) -> None:
    """The other, its share of each snapshot alone."""
    recipe = make_recipe(steps=8)
    if kind == "contrastive":
        text = recipe.read_text().partition("[words]")[0].replace("precision", "# precision")
        recipe.write_text(f"{text}[contrastive]\nsteps = 4\nbatch = 6\nwidth = 8\nsave_every = 2\n")
    out = tmp_path / "run"
    together(2, run_noting, recipe, out, tmp_path)
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert any(path.endswith("log.jsonl") for path in first)
    assert any("adapter.safetensors" in path or "contrastive.safe" in path for path in first)
    mine = [path for path in second if str(tmp_path) in path]
    assert mine
    assert [path for path in mine if ".part/" not in path] == []


@pytest.mark.parametrize("kind", ["captions", "contrastive"])
def test_two_processes_learn_what_one_does(
    make_recipe: MakeRecipe, tmp_path: Path, kind: str
) -> None:
    """Of the same updates: captions, frames and labels are drawn by the sample, for any number."""
    recipe = make_recipe(steps=4, save_every=4)
    text = recipe.read_text().replace("steps = 40", "steps = 2")
    if kind == "captions":
        text = text.replace("[captions]", "[captions]\nfeature_dropout = 0.0")
        text = text.replace("[words]", "[words]\nfeature_dropout = 0.0")
    else:
        text = text.partition("[words]")[0]
        text += "[contrastive]\nsteps = 4\nbatch = 6\nwidth = 8\nsave_every = 2\n"
    recipe.write_text(text)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert session.run(session.read(recipe), alone, True, lambda _: None).result
    together(2, run_noting, recipe, shared, tmp_path)
    learnt = []
    for out in (alone, shared):
        [path] = out.glob("adapter.safetensors" if kind == "captions" else "contrastive.safe*")
        learnt.append(load_file(path))
    assert learnt[0].keys() == learnt[1].keys()
    for name, weights in learnt[0].items():
        # Adapters are stored in half precision.
        torch.testing.assert_close(weights, learnt[1][name], atol=1e-5, rtol=1e-3)


def test_features_are_computed_once_and_shared_by_runs(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    logs: dict[str, list[str]] = {"one": [], "two": []}
    for name, lines in logs.items():
        run(make_recipe(steps=1), tmp_path / name, log=lines.append)
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
    recipe = make_recipe(steps=1)
    there = read_recipe(recipe, root=tmp_path / "data")
    session.run(there, tmp_path / "run", True, lines.append)
    assert "12 clips, 9 stills, 6 validation" in lines
    with pytest.raises(ConfigError, match=r"no shard matches 'clips-\*\.tar'"):
        session.run(read_recipe(recipe, root=tmp_path), tmp_path / "run", True)


def test_the_adapter_says_where_it_comes_from(whole: Path) -> None:
    tensors, said = load_adapter(whole.with_name("adapter.safetensors"))
    assert said["step"] == 40
    assert said["recipe"]["captions"]["batch"] == 8
    tokens = {"bos": "<bos>", "media": "<media>", "end": "<end>"}
    assert said["model"]["tokens"].items() >= tokens.items()
    vocabulary = tensors.pop("vocabulary")
    assert vocabulary.tolist() == sorted(set(vocabulary.tolist()))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_what_is_written_is_a_recipe_of_the_same_run(make_recipe: MakeRecipe, whole: Path) -> None:
    again = read_recipe(whole.with_name("plan.toml"))
    assert again.table() == read_recipe(make_recipe()).table()


def test_a_snapshot_of_another_recipe_is_one_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe, out = make_recipe(), tmp_path / "run"
    run(make_recipe(steps=8), out)
    text = recipe.read_text()
    recipe.write_text(text.replace("words = 8", "words = 5"))
    with pytest.raises(WeightsError, match=r"is of another model or recipe.*--fresh") as raised:
        run(recipe, out)
    assert "\n" not in str(raised.value)
    run(recipe, out, resume=False)


def test_words_are_not_learnt_in_vain(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The snapshot of the captions would take the place of what more of them had trained."""
    recipe, out = make_recipe(), tmp_path / "run"
    stopped(recipe, out, "captions", 10)
    text = recipe.read_text()
    recipe.write_text(text.replace("[words]\nsteps = 40", "[words]\nsteps = 60"))
    with pytest.raises(InputError, match=r"words\.steps is 60, .* after 40 updates .*--fresh"):
        run(recipe, out)
    recipe.write_text(text.replace("steps = 40\nbatch = 8", "steps = 12\nbatch = 8"))
    run(recipe, out)  # as many words as before


def test_a_trial_keeps_nothing_and_knows_what_is_encoded(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe, out = session.read(make_recipe()), tmp_path / "runs" / "run"
    lines: list[str] = []
    trial = session.try_out(recipe, out, lines.append)
    assert not out.parent.exists()
    loading, *encoding, words, captions = lines
    assert loading == "loading the model and the data"
    assert len(encoding) == 3
    assert all(line.startswith("features of 64 samples of ") for line in encoding)
    assert (words, captions) == ("making 2 updates of 40", "making 2 updates of 40")
    assert isinstance(recipe, Recipe)
    assert trial.updates == recipe.words.steps + recipe.captions.steps
    assert trial.seconds > 0
    assert trial.encoding > 0
    trained = {part.name: part.trained for part in trial.parts}
    assert trained["vision encoder"] == trained["language model"] == 0
    assert trained["resampler"] > 0
    session.run(recipe, out, True, lambda _: None)
    written = sorted(out.parent.rglob("*"))
    assert session.try_out(recipe, out).encoding == 0
    assert sorted(out.parent.rglob("*")) == written
