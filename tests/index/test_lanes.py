"""Batches side by side: in order, bounded, and without a thread that waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from flamvid.index.lanes import Lanes

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def test_they_come_out_in_order_however_long_each_takes(threads: int) -> None:
    """The first waits for the second, so both are in work at once; one more waits for them."""
    second = threading.Event()
    seen: set[int] = set()

    def work(item: int) -> int:
        seen.add(item)
        if item == 0:
            assert second.wait(20)
        if item == 1:
            second.set()
        return torch.get_num_threads()

    with closing(Lanes(work, CPU)) as lanes:
        assert lanes.count == threads
        done = [pair for item in range(5) for pair in lanes.put(item)]
        assert len(done) >= 5 - threads - 1
        done += lanes.ready(all_of_them=True)
    assert done == [(item, 1) for item in range(5)]
    assert torch.get_num_threads() == threads


def test_an_error_comes_to_the_one_who_asks(threads: int) -> None:
    def work(item: int) -> int:
        raise RuntimeError(f"no {item}")

    with closing(Lanes(work, CPU)) as lanes, pytest.raises(RuntimeError, match="no 0"):
        [*lanes.put(0), *lanes.ready(all_of_them=True)]


def test_without_a_thread_it_is_an_error(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other thread waits for the one that could not be."""
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        with pytest.raises(RuntimeError, match="can't start"):
            Lanes(abs, CPU)
    started[0].join(20)
    assert not started[0].is_alive()
