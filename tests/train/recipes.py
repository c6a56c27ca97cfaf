"""The text of a general recipe: each test says its corpora, and what its run has of its own."""

from __future__ import annotations

from pathlib import Path

RECIPE = """
[model]
name = "{model}"
{corpora}
[[validation]]
name = "held out"
kind = "frames"
sources = ["held-out.tar"]
batch = 2
size = 32

[optim]
warmup = 2
learning_rate = 1e-2

[run]
precision = "float32"
save_every = 2
log_every = 1
cache = "features.sqlite"
{run}
"""


def write_recipe(path: Path, model: Path, corpora: str, run: str) -> Path:
    """`corpora` and `run` are TOML: tables of the one, keys of the other."""
    path.write_text(RECIPE.format(model=model, corpora=corpora, run=run))
    return path
