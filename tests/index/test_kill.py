"""The indexer killed at any moment, by SIGKILL, and started again."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from flamvid.store import FeatureStore
from flamvid.store.audit import verify
from tests.index.library_files import contents, make_library
from tests.index.run_index import run_index

# Forked from one that has imported torch: that takes longer than all the rest.
MAKER = multiprocessing.get_context("forkserver")
MAKER.set_forkserver_preload(["tests.index.run_index"])


def begun(model: Path, store: Path, videos: list[str]) -> BaseProcess:
    """A process that indexes from now on."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = MAKER.Process(target=run_index, args=(there, model, store, 30.0, videos))
    process.start()
    there.close()
    with here:
        assert here.recv() == "ready"
    return process


def ended(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def killed_and_resumed(tmp_path: Path, toml: Path, kills: int, long: int) -> None:
    videos = [str(make_library(tmp_path / "videos", long))]
    whole, store = tmp_path / "whole.lmdb", tmp_path / "store.lmdb"
    process = begun(toml, whole, videos)
    started = time.monotonic()
    ended(process)
    length = time.monotonic() - started
    wanted = contents(whole)
    assert sum(db == "videos" for db, _ in wanted) == 7
    assert sum(db == "failures" for db, _ in wanted) == 1

    moments, had = random.Random(0), set[str]()
    for _ in range(kills):
        process = begun(toml, store, videos)
        time.sleep(moments.uniform(0, 0.9 * length))
        process.kill()
        process.join()
        if store.exists() and store.stat().st_size:
            report = verify(store)
            assert not report.findings
            now = set(FeatureStore(store))
            assert had <= now
            had = now
    ended(begun(toml, store, videos))
    assert contents(store) == wanted
    assert not verify(store).findings


def test_killed_a_few_times(tmp_path: Path, toml: Path) -> None:
    killed_and_resumed(tmp_path, toml, kills=3, long=45)


@pytest.mark.slow
def test_killed_25_times(tmp_path: Path, toml: Path) -> None:
    killed_and_resumed(tmp_path, toml, kills=25, long=80)
