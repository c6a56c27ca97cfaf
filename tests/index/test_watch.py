"""Sources that are watched, and an index that follows them, look by look."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.errors import InputError
from flamvid.index import feed
from flamvid.index.content import Gone
from flamvid.index.feed import Decoders
from flamvid.index.sieve import Job
from flamvid.index.watch import Look, watched
from flamvid.store import FeatureStore
from flamvid.store.audit import verify
from tests.index.library_files import exchange, ids
from tests.tiny import write_tar


class Over(Exception):  # noqa: N818 - the way out of what has no end
    """Nothing more is to happen."""


def looks(arguments: list[Path | str], *between: Callable[[], object]) -> list[list[str | Look]]:
    """What comes in each look; between two of them something happens."""
    waiting, out = iter(between), list[list[str | Look]]([[]])

    def sleep(seconds: float) -> None:
        happens = next(waiting, None)
        if happens is None:
            raise Over
        happens()
        out.append([])

    with suppress(Over):
        for found in watched([str(argument) for argument in arguments], 1.0, sleep):
            out[-1].append(found)
    return out


def nothing() -> None:
    pass


def grow(path: Path, data: bytes = b"y") -> None:
    with path.open("ab") as file:
        file.write(data)


def test_waits_for_rest(tmp_path: Path) -> None:
    """A file that grows between two looks is not taken before it stopped growing."""
    done, late = tmp_path / "done.mp4", tmp_path / "late.mp4"
    done.write_bytes(b"x")
    found = looks([tmp_path], lambda: grow(late), lambda: grow(late), nothing, nothing)
    assert found == [[Look()], [str(done), Look()], [Look()], [str(late), Look()], [Look()]]


def test_a_hash_in_a_name(tmp_path: Path) -> None:
    """A plain file is looked at by its whole name, and of a tar the sample."""
    file, tar = tmp_path / "take #1.mp4", tmp_path / "s.tar"
    file.write_bytes(b"x")
    write_tar(tar, [("a.mp4", b"1"), ("b.mp4", b"2")])
    samples = [f"{tar}#a.mp4", f"{tar}#b.mp4"]
    found = looks([tmp_path], lambda: grow(file), nothing, nothing)
    assert found == [[Look()], [*samples, Look()], [str(file), Look()], [Look()]]


def test_what_is_not_there_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that is away for a while, a glob without a match, a list that is half written."""
    folder, table, video = tmp_path / "lib", tmp_path / "l.jsonl", tmp_path / "v.mp4"
    video.write_bytes(b"x")
    table.write_text('{"path": "v.mp4"}\n{"pa')
    arguments: list[Path | str] = [folder, f"{tmp_path}/*.mkv", table]

    def comes() -> None:
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"x")

    def away() -> None:
        folder.rename(tmp_path / "away")

    def back() -> None:
        (tmp_path / "away").rename(folder)

    with caplog.at_level(logging.WARNING):
        found = looks(arguments, comes, nothing, away, back, nothing)
    a, v = str(folder / "a.mp4"), str(video)
    assert found == [[Look()], [v, Look()], [a, Look()], [Look()], [Look()], [Look()]]
    said = [record.getMessage() for record in caplog.records]
    assert sum(f"{folder} does not exist" in line for line in said) == 2
    assert sum("no file matches" in line for line in said) == 1
    assert all(line.endswith("; waiting for it") for line in said)


def test_what_was_gone_comes_again(tmp_path: Path) -> None:
    a, z = tmp_path / "a.mp4", tmp_path / "z.mp4"
    a.write_bytes(b"x")
    found = looks([tmp_path], nothing, lambda: a.rename(z), nothing, lambda: z.rename(a), nothing)
    assert found[1:] == [
        [str(a), Look()],
        [Look(frozenset([str(a)]))],
        [str(z), Look()],
        [Look(frozenset([str(z)]))],
        [str(a), Look()],
    ]


def test_a_look_between_two_renames(tmp_path: Path) -> None:
    """It says so, for what is met at one of the two names alone is half of the truth."""
    a, b = tmp_path / "a.mp4", tmp_path / "b.mp4"
    a.write_bytes(b"x")
    b.write_bytes(b"yy")
    found = looks(
        [tmp_path], nothing, lambda: a.write_bytes(b"yy"), lambda: b.write_bytes(b"x"), nothing
    )
    assert found[2:] == [[Look(changing=True)], [str(a), Look(changing=True)], [str(b), Look()]]


@pytest.mark.parametrize("sources", [[], ["-"], ["-", "x.mp4"]])
def test_what_can_not_be_watched(tmp_path: Path, captioner: Captioner, sources: list[str]) -> None:
    with pytest.raises(InputError, match="watched must be files"):
        library.index(sources, tmp_path / "s.lmdb", model=captioner, watch=1.0)


def test_records_follow_files_look_by_look(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed there and back, exchanged, written over, mended: each look settles it."""
    folder, store = tmp_path / "library", tmp_path / "s.lmdb"
    folder.mkdir()
    a, b, z = (folder / f"{name}.mp4" for name in "abz")
    red, blue = shutil.copy(videos / "red 0.mp4", a), videos / "blue 2.mp4"
    one, other = (hashlib.sha256(Path(f).read_bytes()).hexdigest()[:32] for f in (red, blue))

    def by_name() -> dict[str, str]:
        return {Path(path).name: video for path, video in ids(store).items()}

    def over() -> None:
        shutil.copy(b, a)
        os.utime(a, (2e9, 2e9))

    steps = iter(
        [
            (nothing, {"a.mp4": one}),
            (lambda: a.rename(z), {"z.mp4": one}),
            (lambda: z.rename(a), {"a.mp4": one}),
            (lambda: shutil.copy(blue, b), {"a.mp4": one, "b.mp4": other}),
            (lambda: exchange(a, b), {"a.mp4": other, "b.mp4": one}),
            (lambda: exchange(a, b), {"a.mp4": one, "b.mp4": other}),
            (over, {"b.mp4": other}),
            (a.unlink, {"b.mp4": other}),
            (lambda: shutil.copy(b, z), {"b.mp4": other}),
            (b.unlink, {"z.mp4": other}),
        ]
    )
    rounds, expected = 0, {"a.mp4": one}

    def sleep(seconds: float) -> None:
        nonlocal rounds, expected
        rounds += 1
        if rounds % 3:  # after each step three looks, that all may come to rest and be settled
            return
        deadline = time.monotonic() + 30
        while (found := by_name()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found == expected
        step = next(steps, None)
        if step is None:
            raise Over
        happens, expected = step
        happens()

    monkeypatch.setattr(library, "watched", partial(watched, sleep=sleep))
    stats = library.Stats()
    with pytest.raises(Over):
        library.index(folder, store, model=captioner, watch=1.0, stats=stats)
    assert (stats.indexed, stats.failed, stats.moved, stats.removed) == (2, 0, 7, 1)
    assert not verify(store).findings


@pytest.mark.parametrize("seen", ["before it fails", "after it failed", "again under its own name"])
def test_a_file_that_is_renamed_before_it_is_decoded(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """It is no bad video, and comes by its new name whenever that was looked at first."""
    folder, store = tmp_path / "library", tmp_path / "s.lmdb"
    folder.mkdir()
    a, z = folder / "a.mp4", folder / "z.mp4"
    data = Path(shutil.copy(videos / "red 0.mp4", a)).read_bytes()
    rounds, deadline = 0, time.monotonic() + 20
    renamed, looked = threading.Event(), threading.Event()
    decode = Decoders._decode

    def late(self: Decoders, job: Job) -> None:
        if renamed.is_set():
            return decode(self, job)
        a.rename(z)
        renamed.set()
        if seen == "before it fails":
            looked.wait(30)
        return decode(self, job)

    def is_gone(source: str) -> bool:
        found = Gone()(source)
        if seen == "again under its own name" and z.exists():
            z.rename(a)
        return found

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += renamed.is_set()
        if rounds > 4:  # z was looked at, and lies at rest
            looked.set()
        if ids(store):
            raise Over
        assert time.monotonic() < deadline
        time.sleep(0.05)

    monkeypatch.setattr(Decoders, "_decode", late)
    monkeypatch.setattr(feed, "Gone", lambda: is_gone)
    monkeypatch.setattr(library, "watched", partial(watched, sleep=sleep))
    stats = library.Stats()
    with pytest.raises(Over):
        library.index(folder, store, model=captioner, watch=1.0, stats=stats)
    where = a if seen == "again under its own name" else z
    assert ids(store) == {str(where): hashlib.sha256(data).hexdigest()[:32]}
    assert FeatureStore(store).failures() == []
    assert (stats.found, stats.indexed, stats.duplicates, stats.failed) == (1, 1, 0, 0)


def test_a_file_that_vanishes_for_good_is_a_failure_where_nobody_looks_again(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, store = Path(shutil.copy(videos / "red 0.mp4", tmp_path / "a.mp4")), tmp_path / "s.lmdb"
    decode = Decoders._decode

    def late(self: Decoders, job: Job) -> None:
        a.unlink()
        decode(self, job)

    monkeypatch.setattr(Decoders, "_decode", late)
    stats = library.index(a, store, model=captioner)
    assert (stats.indexed, stats.failed) == (0, 1)
    assert [failure.source for failure in FeatureStore(store).failures()] == [str(a)]
