"""The generated clips of the training demonstration show what their captions say."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import make_shapes

from flamvid.data.shards import read_shard

ALL = [combination for part in make_shapes.combinations() for combination in part]


def test_what_is_held_out_is_new_but_its_words_are_not() -> None:
    seen, held_out = make_shapes.combinations()
    assert not set(seen) & set(held_out)
    assert len(seen) + len(held_out) == len(set(ALL)) == 8 * 6 * 4
    for part in range(3):
        assert {c[part] for c in seen} == {c[part] for c in held_out}


@pytest.mark.parametrize("combination", ALL[::7], ids=make_shapes.caption)
def test_it_moves_as_the_caption_says(combination: make_shapes.Combination) -> None:
    """By the middle of the pixels that have its colour."""
    clip = np.stack(list(make_shapes.frames(combination, random.Random(1)))).astype(int)
    colour = np.array(make_shapes.COLOURS[combination[0]])
    middles = []
    for frame in clip:
        y, x = np.nonzero((np.abs(frame - colour) < 16).all(-1))
        middles.append((x.mean(), y.mean()))
    moved = np.array(middles[-1]) - np.array(middles[0])
    way = np.array(make_shapes.DIRECTIONS[combination[2]])
    assert moved @ way > 40
    assert abs(moved @ way[::-1]) < 3


def test_shards_are_read_as_any_others(tmp_path: Path) -> None:
    make_shapes.write_all(tmp_path, clips=16, seed=0)
    samples = list(read_shard(tmp_path / "train-000.tar"))
    assert [len(sample.pictures) for sample in samples] == [make_shapes.FRAMES] * 16
    seen, _ = make_shapes.combinations()
    assert [s.captions for s in samples] == [(make_shapes.caption(c),) for c in seen[:16]]
