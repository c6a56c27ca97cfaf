"""What a process of its own does that indexes: it says when it begins, so that it can be killed
after that."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from flamvid import library


def run_index(
    ready: Connection, model: Path, store: Path, fps: float, videos: Sequence[str]
) -> None:
    torch.set_num_threads(2)
    captioner = library.load(str(model), device="cpu")
    ready.send("ready")
    config = library.IndexConfig(fps=fps, workers=2)
    library.index(videos, store, model=captioner, config=config, batch=8)
