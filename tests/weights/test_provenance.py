"""Who indexes and who watches live say the same of the same features: one store takes both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from flamvid.index.encoder import FrameEncoder
from flamvid.live.captioner import sizes_of
from flamvid.weights.load import load_model
from flamvid.weights.provenance import provenance_of
from tests.tiny import make_model


def test_live_and_index_agree(tmp_path: Path) -> None:
    model = load_model(str(make_model(tmp_path)))
    encoder, sizes = FrameEncoder(model), sizes_of(model)
    live = provenance_of(
        model,
        "fps 2",
        patches=sizes.patches,
        width=sizes.width,
        embedder=encoder.embedder,
    )
    assert encoder.provenance("fps 2") == live


def test_other_weights_and_pictures_are_told_apart(tmp_path: Path) -> None:
    model = load_model(str(make_model(tmp_path)))
    before = provenance_of(model, "fps 2", patches=4, width=8)
    squashed = replace(model, transform=replace(model.transform, mean=(0.1, 0.2, 0.3)))
    assert provenance_of(squashed, "fps 2", patches=4, width=8) != before
    with torch.no_grad():
        next(iter(model.flamingo.vision.parameters())).add_(1)
    after = provenance_of(model, "fps 2", patches=4, width=8)
    assert replace(after, weights_sha256=before.weights_sha256) == before != after
