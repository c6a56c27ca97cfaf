"""Frozen features of shards, computed once and kept on disk.

Legend: X frames of a whole shard, N patches, F feature width, B samples, T frames per sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flamvid.data.samples import Document, Media
from flamvid.data.shards import read_shard
from flamvid.errors import SourceError
from flamvid.weights.load import LoadedModel

__all__ = [
    "FeatureSet",
    "FeatureShard",
    "Thin",
    "compute_features",
    "digest_of",
    "encoder_of",
    "features_of",
    "load_features",
    "missing_features",
]

Encode = Callable[[list[Tensor]], Tensor]
"""Pictures uint8 [3,H,W] to features [T,N,F], one T for each unless it looks over time."""

_BATCH = 32
_MOST_BAD = 1000  # samples that may be unreadable, as those of a corpus


class Thin:
    """Leaves frames and patches out of what a model is trained on, or it learns them by heart.

    rng: for what a batch has in common; rngs: one for each sample.
    """

    def __init__(
        self, patch_dropout: float, rng: random.Random, rngs: Sequence[random.Random]
    ) -> None:
        self.patch_dropout, self.rng, self.rngs = patch_dropout, rng, rngs

    def frames(self, sample: int, count: int) -> list[int]:
        """At least half of a sample's `count` frames, in order."""
        rng = self.rngs[sample]
        kept = rng.randint((count + 1) // 2, count)
        return sorted(rng.sample(range(count), kept))

    def patches(self, count: int) -> list[int]:
        """All but a share of `count` patches, in order."""
        kept = max(1, round(count * (1 - self.patch_dropout)))
        return sorted(self.rng.sample(range(count), kept))


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Samples as features: `shards` float16 [X,N,F], and where each sample lies in them."""

    shards: tuple[Tensor, ...]
    places: tuple[tuple[int, int, int], ...]  # shard, first frame, frames
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int], thin: Thin | None = None) -> tuple[Tensor, Tensor]:
        """Features float32 [B,T,N,F], short samples padded with 0, and frame counts [B].

        thin: leave some frames and patches out, at random.
        """
        chosen = [self._frames(row, at, thin) for at, row in enumerate(rows)]
        counts = torch.tensor([len(frames) for _, frames in chosen])
        N, width = self.shards[0].shape[1:]
        patches = thin.patches(N) if thin else range(N)
        out = torch.zeros(len(rows), int(counts.max()), len(patches), width)
        for row, (shard, frames) in enumerate(chosen):
            features_TNF = self.shards[shard][frames]
            out[row, : len(frames)] = features_TNF[:, list(patches)] if thin else features_TNF
        return out, counts

    def _frames(self, row: int, at: int, thin: Thin | None) -> tuple[int, list[int]]:
        """The shard of a batch's sample number `at`, and which frames of it to take."""
        shard, first, count = self.places[row]
        frames = thin.frames(at, count) if thin else range(count)
        return shard, [first + frame for frame in frames]

    def plain(self) -> FeatureSet:
        """The same with captions in lower case, without a full stop at the end."""
        captions = tuple(tuple(c.lower().rstrip(" .") for c in group) for group in self.captions)
        return replace(self, captions=captions)

    def __add__(self, other: FeatureSet) -> FeatureSet:
        moved = tuple((s + len(self.shards), a, n) for s, a, n in other.places)
        return FeatureSet(
            self.shards + other.shards,
            self.places + moved,
            self.ids + other.ids,
            self.captions + other.captions,
        )


def digest_of(module: nn.Module) -> str:
    """Of some numbers of each of its tensors: an encoder trained anew has the name that it had."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        some = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)]
        digest.update(f"{name} {some.double().tolist()}".encode())
    return digest.hexdigest()


def encoder_of(model: LoadedModel) -> str:
    """What features depend on, as text; weights on disk may be others next time, named ones not."""
    look = model.config.vision
    places = (look.weights, look.encoder.partition(":")[2])
    if any(place and Path(place).expanduser().exists() for place in places):
        return f"{look.features} {digest_of(model.flamingo.vision)}"
    return look.features


def cache_name(shard: Path, encoder: str) -> str:
    """File name of a shard's features: other content, or another encoder, has another name."""
    digest = hashlib.sha256(encoder.encode())
    with shard.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{shard.parent.name}-{shard.stem}-{digest.hexdigest()[:12]}.safetensors"


def compute_features(
    shard: Path,
    out: Path,
    encode: Encode,
    over_time: bool = False,
    most: int | None = None,
    wrong: Callable[[SourceError], None] | None = None,
) -> None:
    """Encode every picture of a shard into `out`, which appears whole or not at all.

    over_time: the encoder takes the pictures of one sample at once; if not, of any in a batch.
    most: only of so many samples. wrong: told of each that can't be read; see `read_shard`.
    """
    ids, counts, captions = [], [], []
    features: list[Tensor] = []
    waiting: list[Tensor] = []
    for sample in islice(read_shard(shard, wrong), most):
        ids.append(sample.id)
        captions.append(sample.captions)
        if over_time:
            features.append(encode(list(sample.pictures)).half().cpu())
            counts.append(len(features[-1]))
            continue
        counts.append(len(sample.pictures))
        waiting += sample.pictures
        while len(waiting) >= _BATCH:
            features.append(encode(waiting[:_BATCH]).half().cpu())
            del waiting[:_BATCH]
    if waiting:
        features.append(encode(waiting).half().cpu())
    if not features:
        raise SourceError(f"{shard} holds no samples; correct the recipe or copy the shard again")
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    tensors = {"features": torch.cat(features), "counts": torch.tensor(counts, dtype=torch.int32)}
    save_file(tensors, part, metadata={"ids": json.dumps(ids), "captions": json.dumps(captions)})
    part.replace(out)


def load_features(path: Path) -> FeatureSet:
    """A shard's features from disk, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        features, counts = file.get_tensor("features"), file.get_tensor("counts").tolist()
        metadata = file.metadata()
    starts = [0, *accumulate(counts)]
    places = tuple((0, a, n) for a, n in zip(starts, counts, strict=False))
    captions = tuple(tuple(c) for c in json.loads(metadata["captions"]))
    return FeatureSet((features,), places, tuple(json.loads(metadata["ids"])), captions)


def features_of(
    shards: list[Path],
    cache: Path,
    model: LoadedModel,
    log: Callable[[str], None],
    most: int | None = None,
) -> FeatureSet:
    """Features of all shards, from the cache where they lie there; if not, of `most` samples."""
    cache.mkdir(parents=True, exist_ok=True)
    encoder = encoder_of(model)

    def encode(pictures: list[Tensor]) -> Tensor:
        ready = torch.cat([model.transform(picture[None]) for picture in pictures])
        return model.flamingo.encode(ready)

    bad = 0

    def wrong(error: SourceError) -> None:
        nonlocal bad
        bad += 1
        if bad > _MOST_BAD:
            raise SourceError(f"more than {_MOST_BAD} samples can't be read; the last: {error}")
        log(f"left out: {error}")

    sets = []
    for shard in shards:
        path = cache / cache_name(shard, encoder)
        if not path.exists():
            log(f"features of {shard} -> {path}")
            over_time = model.flamingo.vision.clip is not None
            compute_features(shard, path, encode, over_time, most, wrong)
        sets.append(load_features(path))
    return sum(sets[1:], start=sets[0])


def missing_features(shards: list[Path], cache: Path, model: LoadedModel) -> list[Path]:
    """The shards whose features are not in the cache."""
    encoder = encoder_of(model)
    return [shard for shard in shards if not (cache / cache_name(shard, encoder)).exists()]


class FeatureShard:
    """A shard's features as samples of a corpus."""

    def __init__(self, address: str) -> None:
        try:
            self.features = load_features(Path(address))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SourceError(f"{address} holds no features ({error}); make them anew") from error

    def __len__(self) -> int:
        return len(self.features)

    def name(self, at: int) -> str:
        """A sample's name."""
        return self.features.ids[at]

    def document(self, at: int) -> Document:
        """A sample, with all its frames."""
        features = self.features.batch([at])[0][0]
        media = Media(np.arange(len(features), dtype=np.float64), features=features)
        return Document(self.features.ids[at], (media,), self.features.captions[at])
