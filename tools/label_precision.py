"""How often captions say what the encoder's labels say: the words that they never do.

    python tools/label_precision.py --data FOLDER --cache runs/features

Prints a line for each label that at least 20 of the training media have: how many have it, and how
many of those have a caption that says it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from flamvid.data.features import cache_name, encoder_of, load_features
from flamvid.data.shards import expand
from flamvid.models.vision import TimmEncoder
from flamvid.train.labels import label_media
from flamvid.weights.load import load_model

_SHARDS = ("msrvtt/train-*.tar", "flickr8k/train-*.tar", "coco/train-*.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--cache", type=Path, required=True, help="folder of their features")
    parser.add_argument("--model", default="flamvid-base")
    options = parser.parse_args()

    model = load_model(options.model, dtype="float32", trained=False)
    encoder = model.flamingo.vision
    assert model.labels is not None
    assert isinstance(encoder, TimmEncoder)
    seen: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for shard in expand(_SHARDS, options.data):
        media = load_features(options.cache / cache_name(shard, encoder_of(model)))
        found = label_media(media.plain(), encoder, model.labels)
        for labels, captions in zip(found, media.plain().captions, strict=True):
            for label in labels:
                seen[label] += 1
                told = re.compile(rf"\b{re.escape(label)}s?\b")
                said[label] += any(told.search(caption) for caption in captions)
    for label, count in sorted(seen.items(), key=lambda item: said[item[0]] / item[1]):
        if count >= 20:
            print(f"{said[label] / count:.2f} {label}: {said[label]} of {count}")


if __name__ == "__main__":
    main()
