"""The index by Ray: many processes, one lost on the way, and the same store as by one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.index.cluster import Work
from flamvid.index.stats import Stats
from flamvid.library import Cluster, IndexConfig
from tests.index.library_files import contents

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of processes and sockets that it leaves
    pytest.mark.slow,
]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> object:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(num_cpus=2, runtime_env={"env_vars": environment}, **quiet)
    yield None
    ray.shutdown()


def dying(work: Work, deaths: Path, sources: Sequence[str], store: Path) -> Stats:
    """The work, but the first process that has done it is killed before it can say so."""
    stats = work(sources, store)
    try:
        deaths.touch(exist_ok=False)
    except FileExistsError:
        return stats
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def test_the_same_store(
    tmp_path: Path, videos: Path, captioner: Captioner, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, after_loss = (tmp_path / f"{name}.lmdb" for name in ("one", "two", "loss"))
    config = IndexConfig(fps=2, workers=1)
    library.index(videos, one, model=captioner, config=config)
    cluster = Cluster(part=2)
    stats = library.index_on_ray(videos, two, cluster, model=str(toml), device="cpu", config=config)
    assert contents(two) == contents(one)
    assert (stats.indexed, stats.duplicates, stats.failed) == (6, 1, 1)
    assert not two.with_name("two.lmdb.parts").exists()

    again = library.index_on_ray(videos, two, cluster, model=str(toml), config=config)
    assert contents(two) == contents(one)
    assert (again.total, again.found, again.present) == (8, 8, 6)
    assert (again.indexed, again.duplicates, again.failed_before) == (0, 1, 1)

    death = tmp_path / "death"
    real = library.index_on_cluster
    monkeypatch.setattr(
        library,
        "index_on_cluster",
        lambda found, store, work, *rest: real(found, store, partial(dying, work, death), *rest),
    )
    stats = library.index_on_ray(
        videos, after_loss, cluster, model=str(toml), device="cpu", config=config
    )
    assert death.exists()
    assert contents(after_loss) == contents(one)
    assert stats.indexed == 6
