"""Errors of processes that read ahead: what the parent hears of them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flamvid.data.mixture import Mixture
from flamvid.data.workers import Items, none_lost
from flamvid.errors import SourceError
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus


def features(path: Path, width: int) -> None:
    """One sample of one frame, as `compute_features` writes it."""
    tensors = {"features": torch.zeros(1, 2, width).half(), "counts": torch.ones(1).int()}
    about = {"ids": json.dumps([path.stem]), "captions": json.dumps([["red"]])}
    save_file(tensors, path, metadata=about)


def test_an_error_is_what_it_is_without_workers(prompts: PromptFormat, tmp_path: Path) -> None:
    """And not torch's, whose message is the worker's traceback."""
    features(tmp_path / "a.safetensors", 3)
    features(tmp_path / "b.safetensors", 4)
    mixed = corpus("features", "*.safetensors", batch=2)
    said = []
    for workers in (0, 1):
        with pytest.raises(SourceError) as caught:
            next(Mixture([mixed], prompts, root=tmp_path, workers=workers))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "a corpus's features must be of one encoder" in said[0]


LOSES_ONE = """
import os, signal, sys, time
from multiprocessing import active_children
from pathlib import Path
from flamvid.data.mixture import Mixture
from flamvid.data.workers import Items, none_lost
from flamvid.errors import SourceError
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus
from tests.tiny import make_tokenizer

config = corpus("features", "a.safetensors", batch=1)
prompts = PromptFormat(make_tokenizer(), 1, 2, 3)
updates = Mixture([config], prompts, root=Path(sys.argv[1]), workers=2)
try:
    with none_lost():
        next(updates)
        os.kill(active_children()[0].pid, signal.SIGKILL)
        time.sleep(60)  # torch's handler of SIGCHLD ends it at once
except SourceError as error:
    print(error)
"""


def test_a_worker_that_is_killed_is_told_in_a_line(tmp_path: Path) -> None:
    """In a process of its own, for torch raises wherever that is: the kernel kills at any time."""
    features(tmp_path / "a.safetensors", 3)
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ONE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"a process that reads data .* killed by signal: Killed\); .* lower run.workers\n",
        done.stdout,
    )


def test_a_worker_that_ends_within_a_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What multiprocessing raises where the other end of its pipe is gone, as it was seen."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # that of the tests' own process

    def ahead() -> Iterator[str]:
        yield "a batch"
        raise EOFError

    batches = Items(ahead())
    assert next(batches) == "a batch"
    with pytest.raises(SourceError, match="a process that reads data ahead was lost"):
        next(batches)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="of the block itself"), none_lost():
        raise RuntimeError("of the block itself")


def test_an_error_is_not_the_end() -> None:
    """A generator would be over after it had raised."""
    items = Items(iter([1, SourceError("x"), 3]))
    assert next(items) == 1
    with pytest.raises(SourceError, match="x"):
        next(items)
    assert next(items) == 3
