"""The contrastive objective and its runs, on one process and on two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from flamvid.errors import ConfigError
from flamvid.live.look import Looker, View
from flamvid.models.contrastive import mean_vector
from flamvid.train import session
from flamvid.train.contrastive import ContrastiveStage, contrastive_loss
from flamvid.train.draw import rows_of
from flamvid.train.dual import missed
from flamvid.train.journal import read_journal
from flamvid.train.recipe import read_recipe
from flamvid.train.trainer import Report
from flamvid.weights.embed import load_embedder
from flamvid.weights.load import load_model
from tests.tiny import WORDS, encode, picture

RECIPE = """
model = "{model}"

[data]
clips = ["clips-*.tar"]
stills = ["stills.tar"]
validation = ["validation.tar"]
root = "{root}"

[contrastive]
steps = {steps}
batch = 16
warmup = 5
smoothing = 0.0
width = 8
save_every = 5
{more}
"""
WHOLE = """
encoder = "timm:test_efficientnet"
size = 32
bert_layers = 1
bert_width = 16
bert_heads = 2
tokens = 8
"""


@pytest.fixture
def recipe(tiny: Path, shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "heads.toml"
    path.write_text(RECIPE.format(model=tiny, root=shards, steps=40, more="hidden = 16"))
    return path


def run(recipe: Path, out: Path, watch: Callable[[Report], None] | None = None) -> Path | None:
    """What a run leaves, None where it was stopped."""
    return session.run(read_recipe(recipe), out, True, lambda _: None, watch).result


@pytest.mark.parametrize("more", ["", WHOLE])
def test_a_trial_keeps_nothing(recipe: Path, tmp_path: Path, more: str) -> None:
    recipe.write_text(recipe.read_text() + more)
    trial = session.try_out(read_recipe(recipe), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()
    assert trial.updates == 40
    assert (trial.encoding > 0) == (not more)
    sizes = {part.name: (part.parameters, part.trained) for part in trial.parts}
    assert sizes["vision"][1] == sizes["vision"][0] > 0
    assert more or sizes["language model"][1] == 0 < sizes["language model"][0]


def test_loss_is_that_of_clip() -> None:
    """As figure 3 of its paper states it, in numpy's terms."""
    torch.manual_seed(0)
    videos, texts = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    ours = contrastive_loss(videos, texts, torch.tensor(7.0), 0.0)
    alike = np.exp(7.0 * (videos @ texts.T).numpy())
    shares = np.diag(alike) / alike.sum(0), np.diag(alike) / alike.sum(1)
    assert float(ours) == pytest.approx(-np.mean(np.log(shares)), rel=1e-5)


def test_every_sample_once_an_epoch() -> None:
    """Whatever the batch, and in another order each time."""
    rows = [row for step in range(10) for row in rows_of(step, 3, 10, seed=1)]
    assert [sorted(rows[at : at + 10]) for at in (0, 10, 20)] == [list(range(10))] * 3
    assert rows[:10] != rows[10:20]


def test_what_is_missed_has_better_ones() -> None:
    videos = torch.eye(3)
    texts = F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 1, 0], [1.0, 0.9, 0.8]]), dim=-1)
    found = missed(videos, texts, torch.tensor([0, 1, 2]))
    assert found == {"missed@1": pytest.approx(1 / 3), "missed@5": 0, "missed@10": 0}


def test_heads_find_the_colour(recipe: Path, tiny: Path, tmp_path: Path) -> None:
    """Trained on frozen parts, they tell which picture a text is about; and load by the TOML."""
    path = run(recipe, tmp_path / "run")
    toml = tmp_path / "with_heads.toml"
    here = tiny.read_text().replace('"tiny.safe', f'"{tiny.parent}/tiny.safe')
    toml.write_text(f'contrastive = "{path}"\n{here}')
    model = load_model(str(toml))
    embedder = load_embedder(model)
    assert embedder is not None
    vectors = []
    for at in range(3):
        file = tmp_path / f"{at}.webp"
        file.write_bytes(encode(picture([230 * (at == c) for c in range(3)])))
        ((_, features),) = Looker(model).look(file, View())
        vectors.append(mean_vector(embedder.frames(features)))
    alike = embedder.text([f"A {word} wall." for word in WORDS]) @ torch.stack(vectors).T
    assert alike.argmax(1).tolist() == [0, 1, 2]
    assert load_embedder(load_model(str(tiny))) is None


@pytest.mark.parametrize("more", ["dropout = 0.1", WHOLE])
def test_a_stopped_run_ends_as_one_that_was_not(
    tiny: Path, shards: Path, tmp_path: Path, more: str
) -> None:
    """Bit for bit, and so are the means that an encoder's batch norms hold."""
    recipe = tmp_path / "stopped.toml"
    recipe.write_text(RECIPE.format(model=tiny, root=shards, steps=12, more=more))

    def stop(report: Report) -> None:
        if report.step == 10:
            signal.raise_signal(signal.SIGTERM)

    run(recipe, tmp_path / "a")
    assert run(recipe, tmp_path / "b", stop) is None
    run(recipe, tmp_path / "b")
    for file in ("contrastive.safetensors", *(["encoder/model.safetensors"] * (more == WHOLE))):
        ours, theirs = (load_file(tmp_path / name / file) for name in "ab")
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_encoder_from_scratch(tiny: Path, shards: Path, tmp_path: Path) -> None:
    """It learns beside its BERT, and a model's TOML can name what it wrote."""
    path = tmp_path / "whole.toml"
    path.write_text(RECIPE.format(model=tiny, root=shards, steps=25, more=WHOLE))
    folder = run(path, tmp_path / "run")
    assert folder is not None
    losses = [entry["loss"]["pairs"] for entry in read_journal(tmp_path / "run") if "loss" in entry]
    assert losses[-1] < losses[0]
    toml = tmp_path / "other.toml"
    named = tiny.read_text().replace(f'"{tiny.parent}/vision"', f'"{folder}"')
    toml.write_text(named.replace("labels = 2", "classifier = false"))
    model = load_model(str(toml), trained=False)
    stored = load_file(folder / "model.safetensors")
    held = model.flamingo.vision.model.state_dict()
    assert torch.equal(held["conv_stem.weight"], stored["conv_stem.weight"])


_TWO = """
import sys, torch
from torch import distributed
from torch.nn import functional as F
from flamvid.train.contrastive import contrastive_loss
distributed.init_process_group("gloo")
torch.manual_seed(0)
inputs = torch.randn(8, 2, 5)
weight = torch.randn(5, 4, requires_grad=True)
rank, world = distributed.get_rank(), distributed.get_world_size()
mine = inputs[rank::world] if world > 1 else inputs
videos, texts = (F.normalize(mine[:, i] @ weight, dim=-1) for i in range(2))
loss = contrastive_loss(videos, texts, torch.tensor(5.0), 0.1)
loss.backward()
both = torch.cat([loss.detach()[None], weight.grad.flatten()]) / world
distributed.all_reduce(both)
if rank == 0:
    torch.save(both, sys.argv[1])
distributed.destroy_process_group()
"""


def test_two_processes_share_their_negatives(tmp_path: Path) -> None:
    """The mean loss and gradient of two are those of one with all pairs."""
    script = tmp_path / "two.py"
    script.write_text(_TWO)
    got = []
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        runner = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
        command = [*runner, "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, str(script), str(out)], check=True, env=env, capture_output=True)
        got.append(torch.load(out, weights_only=True))
    torch.testing.assert_close(got[0], got[1])


def test_a_wrong_recipe_is_one_line(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("smoothing", "smothing"))
    with pytest.raises(ConfigError, match="did you mean 'smoothing'"):
        read_recipe(recipe)
    with pytest.raises(ConfigError, match=r"contrastive.batch is 0; must be above 0"):
        ContrastiveStage(batch=0)
