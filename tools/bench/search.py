"""Exact and approximate search over a million vectors, and what the latter finds of the former.

    python tools/bench/search.py [--vectors 1000000] [--width 512] [--kind ivf] [--threads 2]

The vectors stand in for a library's: clusters of clusters (videos, and windows within them), since
neighbours of vectors that are drawn evenly from a sphere are no one's idea of a result. Exact
search is measured warm: the vectors are in memory, as after the first query.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from flamvid.index.approximate import Approximate
from flamvid.index.search import nearest, search_windows
from flamvid.index.windows import ROW, Part, Windows, load_part

PER_VIDEO = 50


def make_part(folder: Path, count: int, width: int) -> Part:
    """A part as `open_windows` writes it: topics, videos about them, windows of them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    videos = -(-count // PER_VIDEO)
    topics = rng.normal(size=(2000, width)).astype(np.float32)
    with (folder / "vectors").open("wb") as file:
        for first in range(0, videos, 1000):
            some = min(1000, videos - first)
            centres = topics[rng.integers(0, len(topics), some)]
            centres = centres + rng.normal(size=centres.shape).astype(np.float32)
            noise = rng.normal(size=(some, PER_VIDEO, width)).astype(np.float32)
            vectors = (centres[:, None] + 0.7 * noise).reshape(-1, width)
            vectors = vectors[: count - first * PER_VIDEO]
            (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f2").tofile(file)
    rows = np.empty(count, ROW)
    rows["video"] = np.arange(count) // PER_VIDEO
    rows["start"] = np.arange(count) % PER_VIDEO * 2.0
    rows["end"] = rows["start"] + 4.0
    np.save(folder / "rows.npy", rows)
    clips = [[f"{v:032x}", f"video {v}.mp4", 2.0 * PER_VIDEO + 2, 0.0] for v in range(videos)]
    (folder / "clips.json").write_text(json.dumps(clips))
    return load_part(folder, width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--kind", default="ivf")
    parser.add_argument("--effort", type=int)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        windows = Windows(home, (make_part(home / "part-0-x", args.vectors, args.width),), (None,))
        begun = time.perf_counter()
        approximate = Approximate(windows, args.kind, args.effort)
        print(f"{args.kind} made in {time.perf_counter() - begun:.0f} s")
        import faiss

        faiss.omp_set_num_threads(args.threads)
        queries = approximate.sample(args.queries)
        nearest(windows, queries[0], 10)
        sides = {
            "exact, 10 nearest windows": lambda q: nearest(windows, q, 10),
            "exact, 10 ranges apart": lambda q: search_windows(windows, q, 10),
            f"{args.kind}, 10 nearest windows": lambda q: approximate.nearest(q, 10),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for query in queries:
            for name, side in sides.items():
                begun = time.perf_counter()
                side(query)
                times[name].append((time.perf_counter() - begun) * 1e3)
        for name, values in times.items():
            print(f"{name:28} median {statistics.median(values):7.2f} ms  (best {min(values):.2f})")
        first, _, last = (statistics.median(values) for values in times.values())
        print(f"recall@10 {approximate.recall(queries):.3f} at {last / first:.3f} of the time")


if __name__ == "__main__":
    main()
