"""What a recipe leaves to its model: the weights of corpora, and how updates are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flamvid.errors import ConfigError
from flamvid.models.build import read_model_config

__all__ = ["mix_as_the_model"]

# What the mixtures of the paper and its ablations are made of: one without it is meant to lack it.
_PAPER = ("m3w", "align", "ltip", "laion", "vtp")


def mix_as_the_model(table: dict[str, Any], model: str, path: Path) -> None:
    """Fill in a recipe's table, in place, what it doesn't say and its model's `[mixture]` does.

    That is `run.mixing`, and the weight of each corpus that has a corpus's name in the mixture, in
    whatever case. One without a weight is left out if it is the paper's and the mixture lacks it.
    Raises ConfigError for any other that the mixture lacks, and where nothing is left.
    """
    mixture = read_model_config(model).mixture
    if mixture is None:
        return
    table.setdefault("run", {}).setdefault("mixing", mixture.mixing)
    weights = {name.lower(): weight for name, weight in mixture.weights.items()}
    kept = []
    for corpus in table["corpus"]:
        name = str(corpus.get("name", "")).lower()
        if "weight" not in corpus and name in weights:
            kept.append({**corpus, "weight": weights[name]})
        elif "weight" in corpus:
            kept.append(corpus)
        elif name not in _PAPER:
            raise ConfigError(
                f"{path}: corpus {corpus.get('name')!r} has no weight, and is not in the mixture "
                f"of {model} ({mixture}); give it a weight, or leave it out"
            )
    if not kept:
        raise ConfigError(
            f"{path}: none of its corpora is in the mixture of {model} ({mixture}); give them "
            "weights, or take another model"
        )
    table["corpus"] = kept
