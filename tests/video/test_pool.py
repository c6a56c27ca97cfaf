"""Many files at once, and sources in the processes of a DataLoader."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from flamvid import video
from flamvid.errors import InputError, SourceError
from flamvid.video.pool import decode_many
from flamvid.video.sample import Uniform


@pytest.fixture
def clips(make_clip: Callable[..., Path]) -> list[Path]:
    return [make_clip(f"{i}.mp4", frames=10 + i) for i in range(4)]


def test_all_come_in_order_and_a_bad_one_alone_fails(
    clips: list[Path], tmp_path: Path, numbers: Callable[..., list[int]]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    found = list(decode_many([*clips, bad, *clips], Uniform(2), workers=3))
    assert [d.source for d in found] == [*clips, bad, *clips]
    assert "bad.mp4" in str(found[4].error)
    assert found[4].frames is None
    assert [numbers(d.frames.pixels) for d in found if d.frames][:2] == [[2, 7], [2, 8]]


def test_an_endless_list_is_read_no_further_than_needed(clips: list[Path]) -> None:
    asked = 0

    def endless() -> Iterator[Path]:
        nonlocal asked
        for clip in itertools.cycle(clips):
            asked += 1
            yield clip

    decoded = decode_many(endless(), Uniform(1), workers=2)
    for _ in range(5):
        assert next(decoded).error is None
    assert asked <= 5 + 4
    decoded.close()


def test_no_workers() -> None:
    with pytest.raises(InputError, match="workers is 0"):
        next(decode_many([], Uniform(1), workers=0))


class OpenedBefore(Dataset[torch.Tensor]):
    """Sources that were opened in the parent and are read in its workers."""

    def __init__(self, clips: list[Path]) -> None:
        self.sources = [video.open(clip) for clip in clips]
        for source in self.sources:
            source.read([0])

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.sources[i].read([i + 3]).pixels


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_sources_work_in_the_workers_of_a_data_loader(
    clips: list[Path], numbers: Callable[..., list[int]], method: str
) -> None:
    if method == "spawn":  # a spawned worker must find this class again; the source is enough
        for clip in clips:
            with video.open(clip) as source:
                again = pickle.loads(pickle.dumps(source))
                assert numbers(again.read([4]).pixels) == [4]
                again.close()
        return
    dataset = OpenedBefore(clips)
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    assert [numbers(batch[0])[0] for batch in loader] == [3, 4, 5, 6]
    # The parent's own children are as they were.
    assert numbers(dataset.sources[1].read([2]).pixels) == [2]


def test_a_closed_source_says_so(clips: list[Path]) -> None:
    source = video.open(clips[0])
    source.close()
    source.close()
    with pytest.raises(SourceError, match="was closed"):
        source.read([0])
