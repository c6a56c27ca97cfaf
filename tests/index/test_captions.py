"""Captions kept with features: of the same pass, and of what a store holds already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.index.feed import Decoders
from flamvid.library import IndexConfig
from flamvid.store import FeatureStore
from flamvid.store.audit import verify


def test_captions_come_of_the_same_pass(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    source, store = str(videos / "blue 2.mp4"), tmp_path / "s.lmdb"
    config = IndexConfig(frames=captioner.model.config.resampler.frames)
    library.index(source, store, model=captioner, captions=True, config=config)
    opened = FeatureStore(store)
    [caption] = opened[next(iter(opened))].record.captions
    [wanted] = captioner.caption(source)
    assert (caption.text, caption.source) == (wanted.text, source)
    assert caption.logprob == pytest.approx(wanted.logprob, abs=1e-2)


def captions_of(store: Path) -> dict[str, str]:
    opened = FeatureStore(store)
    records = [opened[video].record for video in opened]
    return {record.path: caption.text for record in records for caption in record.captions}


def test_captions_of_what_is_there(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of a first run that was asked for them, and nothing is decoded for them."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, tmp_path / "at once.lmdb", model=captioner, captions=True)
    wanted = captions_of(tmp_path / "at once.lmdb")
    library.index(folder, store, model=captioner)
    assert captions_of(store) == {}
    (folder / "a.mp4").rename(folder / "z.mp4")  # is told of by its new name
    shutil.copy(folder / "b.mp4", folder / "copy.mp4")
    with monkeypatch.context() as patch:
        patch.delattr(Decoders, "_decode")
        stats = library.index(folder, store, model=captioner, captions=True)
    assert (stats.captioned, stats.present, stats.duplicates, stats.moved) == (3, 0, 1, 1)
    assert (stats.indexed, stats.failed, stats.over) == (0, 0, stats.total)
    told = captions_of(store)
    assert told.pop(str(folder / "z.mp4")) == wanted.pop(str(folder / "a.mp4"))
    assert told == wanted
    assert not verify(store).findings
    again = library.index(folder, store, model=captioner, captions=True)
    assert (again.captioned, again.present) == (0, 3)


def test_a_caption_that_fails_takes_no_video(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    monkeypatch.delattr(type(captioner), "recall")
    stats = library.index(folder, store, model=captioner, captions=True)
    assert (stats.captioned, stats.failed, len(FeatureStore(store))) == (0, 3, 3)
