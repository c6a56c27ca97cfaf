"""What an alert's threshold means: how often it fires on what is described, and on what is not.

    python tools/bench/alert.py DATA [--features runs/features]

DATA holds shards of clips with captions (msrvtt/validate-*.tar). Each caption is an alert's text.
It should fire on its own clip and stay quiet on the others; a few of those show the same thing, so
that what is counted as false is an upper bound.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flamvid.data.features import features_of
from flamvid.data.shards import expand
from flamvid.models.contrastive import mean_vector
from flamvid.weights.embed import load_embedder
from flamvid.weights.load import load_model

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--features", type=Path, default=Path("runs/features"))
    options = parser.parse_args()
    model = load_model("flamvid-base", dtype="float32")
    embedder = load_embedder(model)
    assert embedder is not None
    shards = expand(("msrvtt/validate-*.tar",), options.data)
    clips = features_of(shards, options.features, model, print)
    vectors = []
    for row in range(len(clips)):
        features_1TNF, _ = clips.batch([row])
        vectors.append(mean_vector(embedder.frames(features_1TNF[0])))
    videos_VE = torch.stack(vectors)
    owner_K = torch.tensor([row for row, held in enumerate(clips.captions) for _ in held])
    texts_KE = embedder.text([text for held in clips.captions for text in held])
    scores_KV = texts_KE @ videos_VE.T
    own_KV = owner_K[:, None] == torch.arange(len(clips))
    print(f"{len(clips)} clips, {len(owner_K)} captions of them")
    print("threshold  fires on its own clip  on another")
    for threshold in THRESHOLDS:
        fired = scores_KV >= threshold
        hit, false = (float(fired[of].float().mean()) for of in (own_KV, ~own_KV))
        print(f"{threshold:9.2f}  {hit:21.1%}  {false:10.2%}")


if __name__ == "__main__":
    main()
