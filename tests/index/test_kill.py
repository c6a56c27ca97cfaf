"""The indexer killed at any moment, by SIGKILL, and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flamvid.store import FeatureStore
from flamvid.store.audit import verify
from tests.index.library_files import contents, make_library

ROOT = Path(__file__).parents[2]


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "tests.index.run_index", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def killed_and_resumed(tmp_path: Path, toml: Path, kills: int, long: int) -> None:
    videos = make_library(tmp_path / "videos", long)
    whole, store = tmp_path / "whole.lmdb", tmp_path / "store.lmdb"
    with start(toml, whole, 30, videos) as process:
        begun(process)
        started = time.monotonic()
        assert process.wait(120) == 0
        length = time.monotonic() - started
    wanted = contents(whole)
    assert sum(db == "videos" for db, _ in wanted) == 7
    assert sum(db == "failures" for db, _ in wanted) == 1

    moments, had = random.Random(0), set[str]()
    for _ in range(kills):
        with start(toml, store, 30, videos) as process:
            begun(process)
            time.sleep(moments.uniform(0, 0.9 * length))
            process.send_signal(signal.SIGKILL)
        if store.exists() and store.stat().st_size:
            report = verify(store)
            assert not report.findings
            now = set(FeatureStore(store))
            assert had <= now
            had = now
    with start(toml, store, 30, videos) as process:
        assert process.wait(120) == 0
    assert contents(store) == wanted
    assert not verify(store).findings


def test_killed_a_few_times(tmp_path: Path, toml: Path) -> None:
    killed_and_resumed(tmp_path, toml, kills=3, long=45)


@pytest.mark.slow
def test_killed_25_times(tmp_path: Path, toml: Path) -> None:
    killed_and_resumed(tmp_path, toml, kills=25, long=80)
