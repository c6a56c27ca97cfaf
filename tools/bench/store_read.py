"""Reading ranges of features: a store, a flat memory-mapped file, and compressed npz in LMDB.

    python tools/bench/store_read.py [--videos 20] [--frames 120] [--range 16] [--rounds 15]

All three hold the same bytes; an npz holds one range, which is the size that suits it best. "copy"
has them in memory of the caller's, as a batch needs them; "view" sums them where they lie, which
needs no copy. Sequential: every video from its first frame to its last, a range at a time. Random:
as many ranges anywhere. The three take turns in every round; medians of processor time, warm, in
one process. At last, what a call costs that reads one frame in place.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np

from flamvid.store import FeatureStore, Provenance, StoreWriter, VideoRecord

N, F = 81, 1280  # flamvid-base

Read = Callable[[int, int, int, np.ndarray | None], np.ndarray]
"""Video, first frame, the one after the last, where to copy them, to features [T,N,F]."""


def build(folder: Path, videos: int, T: int, piece: int) -> dict[str, Read]:
    """The same features in three forms, and how each is read."""
    rng = np.random.default_rng(0)
    made = Provenance(
        encoder="bench", weights_sha256="", preprocessing="", sampling="", patches=N, width=F
    )
    flat = np.memmap(folder / "flat.bin", np.float16, "w+", shape=(videos * T, N, F))
    packed = lmdb.open(str(folder / "npz.lmdb"), subdir=False, map_size=1 << 40)
    ids = []
    with StoreWriter(folder / "store.lmdb", made) as writer:
        for number in range(videos):
            features = rng.standard_normal((T, N, F), np.float32).astype(np.float16)
            flat[number * T : (number + 1) * T] = features
            with packed.begin(write=True) as txn:
                for first in range(0, T, piece):
                    buffer = io.BytesIO()
                    np.savez_compressed(buffer, features=features[first : first + piece])
                    txn.put(b"%d/%d" % (number, first // piece), buffer.getvalue())
            digest = hashlib.sha256(b"%d" % number).hexdigest()
            with writer.video(VideoRecord(path=f"{number}.mp4", content_hash=digest)) as video:
                video.add(np.arange(T) / 2, features)
            ids.append(digest[:32])
    flat.flush()
    mapped = np.memmap(folder / "flat.bin", np.float16, "r", shape=flat.shape)
    store = FeatureStore(folder / "store.lmdb")

    def copied(features: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if out is None:
            return features
        out[: len(features)] = features
        return out[: len(features)]

    def from_memmap(video: int, first: int, last: int, out: np.ndarray | None) -> np.ndarray:
        return copied(mapped[video * T + first : video * T + last], out)

    def from_store(video: int, first: int, last: int, out: np.ndarray | None) -> np.ndarray:
        return store[ids[video]].features(first / 2, last / 2, out=out)

    def from_npz(video: int, first: int, last: int, out: np.ndarray | None) -> np.ndarray:
        begin, end = first // piece, (last - 1) // piece
        with packed.begin() as txn:
            files = [io.BytesIO(txn.get(b"%d/%d" % (video, n))) for n in range(begin, end + 1)]
        features = np.concatenate([np.load(file)["features"] for file in files])
        return copied(features[first - begin * piece : last - begin * piece], out)

    return {
        "memmap": from_memmap,
        "store": from_store,
        "npz": from_npz,
    }


def seconds(
    read: Read, ranges: list[tuple[int, int, int]], *, copy: bool, out: np.ndarray
) -> float:
    """Processor time to have all bytes of the ranges; the clock would count other processes."""
    begin = time.process_time()
    for number, first, last in ranges:
        features = read(number, first, last, out if copy else None)
        if not copy:
            features.reshape(-1).view(np.uint64).sum()
    return time.process_time() - begin


_CALLS = ("memmap", "store")


def per_call(read: Read, ranges: list[tuple[int, int, int]]) -> float:
    """Microseconds of processor time until the features can be read, without reading them."""
    begin = time.process_time()
    for number, first, last in ranges:
        read(number, first, last, None)
    return (time.process_time() - begin) / len(ranges) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--range", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        reads = build(Path(folder), args.videos, args.frames, args.range)
        sequential = [
            (video, first, first + args.range)
            for video in range(args.videos)
            for first in range(0, args.frames - args.range + 1, args.range)
        ]
        random = [
            (int(rng.integers(args.videos)), int(at), int(at) + args.range)
            for at in rng.integers(args.frames - args.range + 1, size=len(sequential))
        ]
        out = np.empty((args.range, N, F), np.float16)
        gigabytes = len(sequential) * out.nbytes / 1e9
        few = max(1, len(sequential) // 20)  # npz is slow: a part tells
        print(f"{args.videos} videos of {args.frames} frames [{N},{F}], ranges of {args.range}")
        for order, ranges in (("sequential", sequential), ("random", random)):
            for copy in (True, False):
                took: dict[str, list[float]] = {name: [] for name in reads}
                for turn in range(args.rounds + 1):
                    for name, read in reads.items():
                        part = ranges[:few] if name == "npz" else ranges
                        if name == "npz" and turn > 3:
                            continue
                        spent = seconds(read, part, copy=copy, out=out) * len(ranges) / len(part)
                        if turn:  # the first one warms up
                            took[name].append(spent)
                speed = {name: gigabytes / statistics.median(took[name]) for name in took}
                print(
                    f"{order:<10} {'copy' if copy else 'view'}: "
                    + ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in speed.items())
                    + f"; store / memmap {speed['store'] / speed['memmap']:.2f}, "
                    f"store / npz {speed['store'] / speed['npz']:.0f}"
                )
        calls = [(video, first, first + 1) for video, first, _ in random]
        cost = {name: [per_call(reads[name], calls) for _ in range(args.rounds)] for name in _CALLS}
        print(
            "a call for one frame in place: "
            + ", ".join(f"{name} {statistics.median(cost[name]):.1f} us" for name in _CALLS)
        )


if __name__ == "__main__":
    main()
