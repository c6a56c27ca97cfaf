"""Records follow their files: renamed, exchanged, written over, packed into another tar."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.index import indexer
from flamvid.index.feed import Decoders
from flamvid.index.sieve import Job, Sieve
from flamvid.index.stats import Stats
from flamvid.index.windows import open_windows
from flamvid.store import FeatureStore, StoreWriter
from flamvid.store.audit import verify
from tests.index.library_files import exchange, ids
from tests.store.stores import MADE
from tests.tiny import write_tar


def test_a_file_that_changed_takes_its_own_place(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """What it showed before is not found any more; until the new one is there, it is."""
    source, store = tmp_path / "v.mp4", tmp_path / "s.lmdb"
    shutil.copy(videos / "red 0.mp4", source)
    library.index(source, store, model=captioner)
    [old] = FeatureStore(store)
    source.write_bytes(b"half of it")
    assert library.index(source, store, model=captioner).failed == 1
    assert list(FeatureStore(store)) == [old]
    shutil.copy(videos / "blue 2.mp4", source)
    later = time.time() + 5
    os.utime(source, (later, later))
    assert library.index(source, store, model=captioner).indexed == 1
    [new] = FeatureStore(store)
    assert new == hashlib.sha256(source.read_bytes()).hexdigest()[:32]
    assert not verify(store).findings
    assert library.index(source, store, model=captioner).present == 1


@pytest.mark.parametrize("change", ["renamed", "exchanged", "over", "over and away", "touched"])
def test_records_follow_their_files(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, change: str
) -> None:
    """None is decoded twice, and what no file holds any more is not found any more."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    a, b, c = (str(folder / f"{name}.mp4") for name in "abc")
    was = ids(store)
    if change == "renamed":
        Path(a).rename(folder / "z.mp4")
        wanted, counts = {str(folder / "z.mp4"): was[a], b: was[b], c: was[c]}, (1, 0)
    elif change == "exchanged":
        exchange(Path(a), Path(b))
        wanted, counts = {b: was[a], a: was[b], c: was[c]}, (2, 0)
    elif change == "over":
        shutil.copy(a, b)
        wanted, counts = {a: was[a], c: was[c]}, (0, 1)
    elif change == "over and away":
        shutil.copy(b, folder / "z.mp4")
        shutil.copy(a, b)
        wanted, counts = {a: was[a], c: was[c], str(folder / "z.mp4"): was[b]}, (1, 0)
    else:
        wanted, counts = was, (0, 0)
    later = time.time() + 5
    for file in folder.iterdir():
        if change != "renamed":
            os.utime(file, (later, later))
    open_windows(FeatureStore(store))  # as a search before leaves them
    stats = library.index(folder, store, model=captioner)
    assert (stats.indexed, stats.failed, stats.moved, stats.removed) == (0, 0, *counts)
    assert ids(store) == wanted
    found = {clip.path for part in open_windows(FeatureStore(store)).parts for clip in part.clips}
    assert set(wanted) <= found
    assert change == "over" or found == set(wanted)
    assert not verify(store).findings
    again = library.index(folder, store, model=captioner)
    assert (again.moved, again.removed) == (0, 0)
    assert again.present == len(wanted)


def test_a_copy_of_what_was_written_over_stays(
    tmp_path: Path, library_of_three: Path, videos: Path, captioner: Captioner
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was, c = ids(store), folder / "c.mp4"
    shutil.copy(c, folder / "a copy.mp4")  # found before the file that changed, or after
    shutil.copy(c, folder / "z copy.mp4")
    shutil.copy(videos / "sub dir" / "white 5.mp4", c)
    later = time.time() + 5
    os.utime(c, (later, later))
    stats = library.index(folder, store, model=captioner)
    assert (stats.indexed, stats.moved, stats.removed) == (1, 1, 0)
    now = ids(store)
    assert now[str(folder / "a copy.mp4")] == was[str(c)]
    assert len(now) == 4


@pytest.mark.parametrize("new", ["sub dir/white 5", "sub dir/lime 1", "sub dir/yellow 3"])
def test_a_run_that_is_stopped_before_records_follow(
    tmp_path: Path,
    library_of_three: Path,
    videos: Path,
    captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    new: str,
) -> None:
    """Two videos are at one path then, whichever of their ids comes first."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was, c = ids(store), folder / "c.mp4"
    shutil.copy(c, folder / "a copy.mp4")
    shutil.copy(videos / f"{new}.mp4", c)
    later = time.time() + 5
    os.utime(c, (later, later))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexer, "settle", stopped)
        with pytest.raises(KeyboardInterrupt):
            library.index(folder, store, model=captioner)
    assert len(FeatureStore(store)) == 4
    library.index(folder, store, model=captioner)
    now = ids(store)
    assert now[str(folder / "a copy.mp4")] == was[str(c)]
    assert now[str(c)] == hashlib.sha256(c.read_bytes()).hexdigest()[:32]
    assert len(FeatureStore(store)) == len(now) == 4


def test_a_file_that_is_again_what_it_was(tmp_path: Path, library_of_three: Path) -> None:
    """In one run, as `--watch` makes it."""
    store, source = tmp_path / "s.lmdb", library_of_three / "a.mp4"
    stats, old, new = Stats(), source.read_bytes(), (library_of_three / "b.mp4").read_bytes()
    with StoreWriter(store, MADE) as writer:
        sieve = Sieve(writer.reader, stats, lambda _: False)
        jobs = []
        for data in (old, new, old):
            source.write_bytes(data)
            jobs.append(sieve.pick(str(source)))
    first, second, third = jobs
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.stale == (first.content.sha256[:32],)
    assert third.stale == (second.content.sha256[:32],)
    assert stats.duplicates == 0


def test_what_is_unchanged_is_not_written_again(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """Copies are looked at in every run; the store keeps its seal."""
    store = tmp_path / "s.lmdb"
    library.index(videos, store, model=captioner)
    before = store.stat().st_mtime_ns
    assert library.index(videos, store, model=captioner).duplicates == 1
    assert store.stat().st_mtime_ns == before


def test_a_disk_that_is_away_may_come_back(
    tmp_path: Path, library_of_three: Path, captioner: Captioner
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was = ids(store)
    (folder / "a.mp4").unlink()
    library.index(folder, store, model=captioner)
    assert ids(store) == was


def test_samples_of_shards_that_are_packed_anew(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """Records follow them from tar to tar; none is encoded again."""
    red = ("a.mp4", (videos / "red 0.mp4").read_bytes())
    blue = ("b.mp4", (videos / "blue 2.mp4").read_bytes())
    store, one, two = (tmp_path / name for name in ("s.lmdb", "1.tar", "2.tar"))
    write_tar(one, [red, blue])
    library.index(one, store, model=captioner)
    write_tar(one, [red])
    write_tar(two, [blue])
    os.utime(one, (2e9, 2e9))
    stats = library.index([one, two], store, model=captioner)
    assert (stats.indexed, stats.moved, stats.removed, stats.failed) == (0, 1, 0, 0)
    assert set(ids(store)) == {f"{one}#a.mp4", f"{two}#b.mp4"}
    one.write_bytes(b"being written")  # what is in it can't be told
    stats = library.index([one, two], store, model=captioner)
    assert set(ids(store)) == {f"{one}#a.mp4", f"{two}#b.mp4"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_file_that_is_written_over_before_it_is_decoded(
    tmp_path: Path,
    videos: Path,
    captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    """It is indexed as what it is, or not at all while it goes on; a copy of what it was, too."""
    folder, store = tmp_path / "library", tmp_path / "s.lmdb"
    folder.mkdir()
    a, copy = folder / "a.mp4", folder / "b.mp4"
    before = Path(shutil.copy(videos / "red 0.mp4", a)).read_bytes()
    copy.write_bytes(before)
    over = [(videos / f"{name}.mp4").read_bytes() for name in ("blue 2", "aqua 4")[:times]]
    decode, present = Decoders._decode, over.copy()

    def late(self: Decoders, job: Job) -> None:
        if job.source == str(a) and present:
            a.write_bytes(present.pop(0))
        decode(self, job)

    monkeypatch.setattr(Decoders, "_decode", late)
    stats = library.index(folder, store, model=captioner)
    wanted = {str(copy): before}
    if times == 1:
        wanted[str(a)] = over[0]
    else:
        [failure] = FeatureStore(store).failures()
        assert failure.message == f"{a} is being written; index it when that is done"
    named = {path: hashlib.sha256(data).hexdigest()[:32] for path, data in wanted.items()}
    assert ids(store) == named
    assert (stats.found, stats.indexed, stats.duplicates) == (2, len(wanted), 0)
    assert not verify(store).findings
    alone = tmp_path / "alone.lmdb"
    library.index([*wanted], alone, model=captioner)
    for video in named.values():
        mine, other = FeatureStore(store)[video], FeatureStore(alone)[video]
        np.testing.assert_array_equal(mine.features(), other.features())
