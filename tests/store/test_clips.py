"""A store as a torch Dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from flamvid.errors import InputError
from flamvid.store import StoreClips
from tests.store.stores import arrays, length, record, write_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "lib.lmdb", range(6))


def test_clips_are_windows_of_time(path: Path) -> None:
    clips = StoreClips(path, 4.0, stride=2.0, keep=lambda record: record.path.endswith("v4.mp4"))
    pts, features, _ = arrays(4, length(4))
    starts = [s for s in np.arange(0, pts[-1] + 2, 2.0) if ((pts >= s) & (pts < s + 4)).any()]
    assert [clip.start for clip in clips] == [s for s in starts if s <= pts[-1]]
    for clip in clips:
        wanted = (pts >= clip.start) & (pts < clip.end)
        np.testing.assert_array_equal(clip.features.numpy(), features[wanted])
        np.testing.assert_array_equal(clip.pts.numpy(), pts[wanted])
        assert clip.video.id == record(4).id
        clip.features.zero_()  # it is the caller's
    with pytest.raises(InputError, match="above 0"):
        StoreClips(path, 0.0)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_what_one_process_gives(path: Path, context: str) -> None:
    clips = StoreClips(path, 3.0)
    alone = list(DataLoader(clips, 4, collate_fn=StoreClips.collate))
    loader = DataLoader(
        clips,
        4,
        collate_fn=StoreClips.collate,
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
    )
    for (features, counts), (expected, lengths) in zip(loader, alone, strict=True):
        assert torch.equal(features, expected)
        assert torch.equal(counts, lengths)
        assert features.shape[:2] == (len(counts), int(counts.max()))
