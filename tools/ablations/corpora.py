"""Small corpora from the shards of captioned videos and stills, as frozen features.

Legend: T frames, N patches, F feature width, G fields of a frame.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ablations.scale import Scale
from flamvid.data.collate import Batch, collate, make_row
from flamvid.data.corpus import CorpusConfig
from flamvid.data.features import FeatureSet, cache_name, encoder_of, load_features
from flamvid.data.samples import Document, Media, Part
from flamvid.data.shards import read_shard
from flamvid.text.prompt import PromptFormat
from flamvid.weights.load import LoadedModel

__all__ = ["HELD_OUT", "SHARDS", "Corpus", "Places", "documents_of", "held_out", "training"]

# No media is in two of them: leaving one out leaves its media out, too.
SHARDS = {
    "videos": "msrvtt/train-000.tar",
    "images": "flickr8k/train-001.tar",
    "other": "coco/train-000.tar",  # instead of the images
    "documents": "flickr8k/train-000.tar",  # several pictures in each, with their texts
}
HELD_OUT = "msrvtt/validate-000.tar"
_KINDS = {"videos": "videos", "images": "images", "other": "images", "documents": "interleaved"}


@dataclass(frozen=True, slots=True)
class Places:
    """Folders. data: of the shards. work: where features of what is taken of them are kept.

    features: where those of whole shards may lie already, as `flamvid train` leaves them.
    """

    data: Path
    features: Path
    work: Path


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents, and how an update takes them."""

    config: CorpusConfig
    documents: Sequence[Document]

    def batches(self, prompts: PromptFormat, seed: int) -> Iterator[Batch]:
        """Endless; each epoch has all documents, in another order."""
        rng = random.Random(f"{seed} {self.config.name}")
        left: list[Document] = []
        while True:
            while len(left) < self.config.batch:
                left = rng.sample(self.documents, len(self.documents)) + left
            drawn = [left.pop() for _ in range(self.config.batch)]
            rows = [make_row(document, self.config, prompts, rng) for document in drawn]
            yield collate(self.config.name, rows, prompts)


def training(name: str, places: Places, scale: Scale, model: LoadedModel, seed: int) -> Corpus:
    """A corpus to train on, through the model's encoder; seed: of which text a document has."""
    pairs = documents_of(SHARDS[name], scale.samples, places, scale, model)
    several = _KINDS[name] == "interleaved"
    config = CorpusConfig(
        name=name,
        kind=_KINDS[name],
        sources=(SHARDS[name],),
        batch={"videos": scale.videos, "documents": scale.documents}.get(name, scale.images),
        max_tokens=scale.tokens * (scale.media if several else 1),
        leading_space=1.0,  # as in front of what is generated
        next=0.0,  # a text stands behind its picture here, and never tells of the next one
    )
    return Corpus(config, interleave(pairs, scale.media, seed) if several else pairs)


def held_out(places: Places, scale: Scale, model: LoadedModel) -> list[Document]:
    """The videos that are scored."""
    return documents_of(HELD_OUT, scale.held_out, places, scale, model)


def interleave(pairs: Sequence[Document], media: int, seed: int) -> list[Document]:
    """Documents of so many pairs in a row, each with one of its texts."""
    rng, found = random.Random(seed), []
    for first in range(0, len(pairs) - media + 1, media):
        parts: list[Part] = []
        for pair in pairs[first : first + media]:
            parts += [*pair.parts, f" {rng.choice(pair.texts)}"]
        found.append(Document(pairs[first].id, tuple(parts)))
    return found


def documents_of(
    shard: str, limit: int, places: Places, scale: Scale, model: LoadedModel
) -> list[Document]:
    """The first `limit` pairs of a shard; their features are computed once, and kept."""
    path = places.data / shard
    name = cache_name(path, encoder_of(model))
    few = places.work / f"{limit}-{scale.frames}-{scale.grid}-{name}"
    if not few.exists():
        whole = places.features / name
        taken = _read(whole, limit) if whole.exists() else _encode(path, limit, scale, model)
        _save(few, taken, scale)
    found = load_features(few).plain()
    (features_XGF,) = found.shards
    pairs = []
    for id_, texts, (_, first, count) in zip(found.ids, found.captions, found.places, strict=True):
        media = Media(np.arange(count, dtype=float), features=features_XGF[first : first + count])
        pairs.append(Document(id_, (media,), texts))
    return pairs


_Taken = Iterator[tuple[str, Sequence[str], Tensor]]
"""Id, captions and features [T,N,F] of one media after the other."""


def _read(whole: Path, limit: int) -> _Taken:
    found: FeatureSet = load_features(whole)
    for row in range(min(limit, len(found))):
        features_1TNF, _ = found.batch([row])
        yield found.ids[row], found.captions[row], features_1TNF[0]


def _encode(shard: Path, limit: int, scale: Scale, model: LoadedModel) -> _Taken:
    for sample in islice(read_shard(shard), limit):
        chosen = [sample.pictures[at] for at in _spread(len(sample.pictures), scale.frames)]
        frames = torch.cat([model.transform(picture[None]) for picture in chosen])
        yield sample.id, sample.captions, model.flamingo.encode(frames)


def _save(path: Path, taken: _Taken, scale: Scale) -> None:
    """As features of a whole shard are kept; the file appears whole or not at all."""
    ids, captions, features = [], [], []
    for id_, texts, features_TNF in taken:
        ids.append(id_)
        captions.append(texts)
        few = features_TNF[_spread(len(features_TNF), scale.frames)]
        features.append(_fields(few, scale.grid).half())
    counts = torch.tensor([len(x) for x in features], dtype=torch.int32)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    tensors = {"features": torch.cat(features), "counts": counts}
    save_file(tensors, part, metadata={"ids": json.dumps(ids), "captions": json.dumps(captions)})
    part.replace(path)


def _spread(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of `count` frames; all frames where there are no more."""
    wanted = min(count, wanted)
    return [(2 * at + 1) * count // (2 * wanted) for at in range(wanted)]


def _fields(features_TNF: Tensor, grid: int) -> Tensor:
    """Means over the fields of a square grid of patches, [T,G,F] with G = grid * grid."""
    side = math.isqrt(features_TNF.shape[1])
    square_TFhw = features_TNF.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(square_TFhw, grid).flatten(2).transpose(1, 2).contiguous()
