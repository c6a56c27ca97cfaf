"""Approximate search by FAISS, for stores whose exact search takes too long.

An index is made of all windows, and kept beside them. How many of the true neighbours it finds is
measured against exact search, on windows of the store itself, not promised.

Legend: W windows, E width of a vector, Q queries.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid.errors import InputError, StoreError
from flamvid.index.search import Filter, Hit, apart, nearest, search_windows
from flamvid.index.windows import Windows

__all__ = ["EFFORT", "Approximate"]

EFFORT = {"ivf": 64, "hnsw": 256}
"""Each kind, and the effort that found over 0.95 of the ten nearest (tools/bench/search.py)."""
_BLOCK = 65536  # windows that are added at once
_TRAINED_ON = 48  # windows per list that its centres are found by
_NARROW = 1 / 32  # of all windows: where a filter leaves fewer, those few are compared themselves


class Approximate:
    """A FAISS index over windows. "ivf" is made in minutes per million and is as small as they are;
    "hnsw" answers sooner, takes twice the memory and far longer to make.

    effort: lists that are looked into, or candidates that are kept; more finds more, and takes
    longer. None for that of `EFFORT`.
    """

    def __init__(self, windows: Windows, kind: str = "ivf", effort: int | None = None) -> None:
        if kind not in EFFORT:
            raise InputError(f"the kind of index is {kind!r}; must be {' or '.join(EFFORT)}")
        effort = EFFORT[kind] if effort is None else effort
        if effort < 1:
            raise InputError(f"effort is {effort}; must be at least 1")
        self.windows, self.kind, self.effort = windows, kind, effort
        self._ends = list(accumulate(len(part.rows) for part in windows.parts))
        self._index = self._open()

    def search(self, query_E: Tensor, top: int = 10, chosen: Filter | None = None) -> list[Hit]:
        """As `search_windows`, but some hits may be missed. Scores are exact.

        Where the windows that may be found are few, or too few of them are, the search is exact.
        """
        chosen = chosen or Filter()
        pairs = zip(self.windows.parts, self.windows.alive, strict=True)
        masks = [chosen.rows(*pair) for pair in pairs]
        wanted = sum(
            len(part.rows) if mask is None else int(mask.sum())
            for part, mask in zip(self.windows.parts, masks, strict=True)
        )
        count = 8 * top if wanted >= _NARROW * len(self.windows) else len(self.windows)
        while count < min(8192, len(self.windows)):
            found = apart(self.windows, _kept(self.nearest(query_E, count), masks), top)
            if len(found) == top:
                return found
            count *= 8
        return search_windows(self.windows, query_E, top, chosen)

    def nearest(self, query_E: Tensor, count: int) -> list[tuple[float, int, int]]:
        """Score, part and row of about `count` windows, the best first."""
        count = min(count, len(self.windows))
        if not count:
            return []
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(self.effort, count)
        else:
            self._index.nprobe = self.effort
        _, places = self._index.search(query_E.numpy()[None], count)
        out = []
        for place in places[0][places[0] >= 0].tolist():
            part = bisect_right(self._ends, place)
            row = place - (self._ends[part - 1] if part else 0)
            score = float(self.windows.parts[part].vectors[row].float() @ query_E)
            out.append((score, part, row))
        return sorted(out, key=lambda item: (-item[0], item[1], item[2]))

    def recall(self, queries_QE: Tensor, top: int = 10) -> float:
        """Which share of the `top` windows that exact search finds is found, over some queries."""
        hit = wanted = 0
        for query_E in queries_QE:
            exact = {(p, r) for _, p, r in nearest(self.windows, query_E, top)}
            hit += len(exact & {(p, r) for _, p, r in self._alive(query_E, top)})
            wanted += len(exact)
        return hit / max(1, wanted)

    def _alive(self, query_E: Tensor, top: int) -> list[tuple[float, int, int]]:
        """As `nearest`, without windows of videos that were removed."""
        count = top
        while True:
            found = _kept(self.nearest(query_E, count), self.windows.alive)[:top]
            if len(found) == top or count >= len(self.windows):
                return found
            count *= 8

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Queries near windows of the store: their vectors with some noise, [Q,E]."""
        rng = np.random.default_rng(seed)
        pairs = zip(self.windows.parts, self.windows.alive, strict=True)
        alive = [np.ones(len(p.rows), bool) if mask is None else mask for p, mask in pairs]
        living = np.flatnonzero(np.concatenate(alive))
        places = np.sort(rng.choice(living, min(count, len(living)), False))
        if not len(places):
            return torch.empty(0, self.windows.parts[0].vectors.shape[1])
        rows = torch.cat([self._rows(int(p), int(p) + 1) for p in places]).float()
        noise = torch.from_numpy(rng.normal(size=tuple(rows.shape)).astype(np.float32))
        noisy = rows + 0.5 * noise / noise.norm(dim=1, keepdim=True)
        return torch.nn.functional.normalize(noisy, dim=1)

    def _open(self) -> Any:
        faiss = _faiss()
        names = " ".join(path.name for path in sorted(self.windows.folder.glob("part-*")))
        digest = hashlib.sha256(names.encode()).hexdigest()[:12]
        path = self.windows.folder / f"{self.kind}-{digest}.faiss"
        if path.exists():
            with suppress(RuntimeError):  # it is cut short: it is made again
                return faiss.read_index(str(path))
        for old in self.windows.folder.glob(f"{self.kind}-*.faiss"):
            old.unlink(missing_ok=True)
        index = self._make(faiss)
        part = Path(f"{path}.{os.getpid()}.part")
        try:
            faiss.write_index(index, str(part))
            part.replace(path)
        except (OSError, RuntimeError) as error:  # FAISS's own is the latter
            part.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise StoreError(
                f"can't keep the index {path} ({reason}); make room there, or search without "
                "--approximate"
            ) from error
        return index

    def _make(self, faiss: Any) -> Any:
        count, width = len(self.windows), self.windows.parts[0].vectors.shape[1]
        if self.kind == "hnsw":
            spec = "HNSW32,SQfp16"
        else:
            lists = min(4096, round(4 * count**0.5), count // _TRAINED_ON)
            spec = f"IVF{max(1, lists)},SQfp16"
        index = faiss.index_factory(width, spec, faiss.METRIC_INNER_PRODUCT)
        trained = _TRAINED_ON * (index.nlist if self.kind == "ivf" else 256)
        step = max(1, count // trained)
        every = [p.vectors[::step].float().numpy() for p in self.windows.parts]
        index.train(np.ascontiguousarray(np.concatenate(every)))
        for first in range(0, count, _BLOCK):
            index.add(self._rows(first, min(first + _BLOCK, count)).float().numpy())
        return index

    def _rows(self, first: int, last: int) -> Tensor:
        """Vectors of the windows with these numbers, counted over all parts."""
        out, begin = [], 0
        for part, end in zip(self.windows.parts, self._ends, strict=True):
            out.append(part.vectors[max(first - begin, 0) : max(last - begin, 0)])
            begin = end
        return torch.cat(out)


def _kept(
    ranked: list[tuple[float, int, int]], masks: Sequence[NDArray[np.bool_] | None]
) -> list[tuple[float, int, int]]:
    """Those of score, part and row that no mask leaves out."""
    return [each for each in ranked if (mask := masks[each[1]]) is None or mask[each[2]]]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "approximate search needs FAISS; install it with `pip install 'flamvid[search]'`, "
            "or leave --approximate out"
        ) from error
    return faiss
