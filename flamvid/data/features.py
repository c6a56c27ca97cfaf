"""Frozen features of shards, computed once and kept on disk.

Legend: X frames of a whole shard, N patches, F feature width, B samples, T frames per sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flamvid.data.shards import read_shard
from flamvid.errors import SourceError

__all__ = ["FeatureSet", "compute_features", "load_features"]

Encode = Callable[[list[Tensor]], Tensor]
"""Pictures uint8 [3,H,W] to features [len,N,F]."""

_BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSet:
    """Samples as features: `shards` float16 [X,N,F], and where each sample lies in them."""

    shards: tuple[Tensor, ...]
    places: tuple[tuple[int, int, int], ...]  # shard, first frame, frames
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features float32 [B,T,N,F], short samples padded with 0, and frame counts [B]."""
        places = [self.places[r] for r in rows]
        counts = torch.tensor([n for _, _, n in places])
        N, width = self.shards[0].shape[1:]
        out = torch.zeros(len(rows), int(counts.max()), N, width)
        for row, (shard, first, n) in enumerate(places):
            out[row, :n] = self.shards[shard][first : first + n]
        return out, counts

    def __add__(self, other: FeatureSet) -> FeatureSet:
        moved = tuple((s + len(self.shards), a, n) for s, a, n in other.places)
        return FeatureSet(
            self.shards + other.shards,
            self.places + moved,
            self.ids + other.ids,
            self.captions + other.captions,
        )


def cache_name(shard: Path, encoder: str) -> str:
    """File name of a shard's features: other content, or another encoder, has another name."""
    stat = shard.stat()
    key = f"{encoder}|{shard.name}|{stat.st_size}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return f"{shard.parent.name}-{shard.stem}-{digest}.safetensors"


def compute_features(shard: Path, out: Path, encode: Encode) -> None:
    """Encode every picture of a shard into `out`, which appears whole or not at all."""
    ids, counts, captions = [], [], []
    features: list[Tensor] = []
    waiting: list[Tensor] = []
    for sample in read_shard(shard):
        ids.append(sample.id)
        counts.append(len(sample.pictures))
        captions.append(sample.captions)
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
