"""A stream appended to a store, which is read meanwhile."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid.generate.config import GenerationConfig
from flamvid.live.captioner import LiveCaptioner, LiveConfig, sizes_of
from flamvid.live.cue import Cue
from flamvid.live.keep import Keeper
from flamvid.live.memory import MemoryConfig
from flamvid.store import FeatureStore, Provenance
from flamvid.weights.load import LoadedModel
from flamvid.weights.provenance import provenance_of
from tests.live.script import Script, walls


def made(model: LoadedModel, patches: int, width: int) -> Provenance:
    return provenance_of(model, "fps 2", patches=patches, width=width)


def test_parts_can_be_read_while_the_stream_goes_on(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "store"
    live = LiveCaptioner(
        model,
        LiveConfig(every=1.0, memory=MemoryConfig(recent=64)),
        GenerationConfig(beams=1, max_tokens=4),
    )
    sizes = sizes_of(model)
    keeper = Keeper(path, made(model, sizes.patches, sizes.width), "cam", 2.0, seconds=4.0)
    live.on_frame = keeper.add
    visible = []
    for cue in live.watch(Script(walls("red", "green", "blue", each=6))):
        keeper.put(cue)
        with_all = FeatureStore(path)
        visible.append(len(with_all))
        with_all.close()
    keeper.close()
    # Nine seconds: a part is visible when the first frame of the next has come.
    assert visible == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    store = FeatureStore(path)
    parts = sorted((store[video] for video in store), key=lambda part: float(part.pts()[0]))
    assert [part.record.path for part in parts] == ["cam#t=0,4", "cam#t=4,8", "cam#t=8,12"]
    assert [len(part.record.captions) for part in parts] == [4, 4, 1]
    pts = np.concatenate([part.pts() for part in parts])
    assert pts.tolist() == [moment.time for moment in live.memory.recent]
    kept = np.concatenate([np.asarray(part.features()) for part in parts])
    for moment, features in zip(live.memory.recent, kept, strict=True):
        assert features == pytest.approx(moment.features.numpy(), rel=1e-3, abs=1e-4)


def test_a_full_disk_loses_a_part_and_not_the_next(model: LoadedModel, tmp_path: Path) -> None:
    path, features_NF = tmp_path / "store", torch.rand(4, 256)
    keeper = Keeper(path, made(model, 4, 256), "cam", 2.0, seconds=20.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for tick in range(130):  # of three parts and the begin of a fourth
        if tick == 50:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
        try:
            keeper.add(tick / 2 + 0.25, features_NF)
        finally:
            if tick in (90, 129):
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if tick % 10 == 9:
            told = (tick + 1) / 2
            keeper.put(
                Cue(
                    source="cam",
                    start=told - 5,
                    end=told,
                    text="a",
                    model="tiny",
                    why="every",
                    pts=told,
                    wall=0.0,
                )
            )
    keeper.close()
    store = FeatureStore(path)
    records = [store[video].record for video in store]
    assert sorted(r.path for r in records) == ["cam#t=0,20", "cam#t=40,60", "cam#t=60,80"]
    assert sorted(r.duration for r in records) == [5, 20, 20]
    assert keeper.lost == 4
    assert sum(len(r.captions) for r in records) == 13 - 4
    store.close()
