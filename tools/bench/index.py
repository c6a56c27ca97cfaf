"""The indexer against its own parts, against a plain script, and its memory over many videos.

One round measures, after each other and on the same videos, with one worker and one thread:
decoding alone by the indexer's workers, encoding alone, both at once without a queue between them,
the indexer, and the indexer with a writer that drops what it is given. In all of them the encoder
has the first core to itself and all else the last: or each part alone would use what the other
needs. Then, with all cores, the indexer and a script of the usual shape: decode a video, encode it,
save a .npy, the next.

    python tools/bench/index.py                  three rounds over 40 videos
    python tools/bench/index.py --memory 1000    resident memory while 1,000 videos are indexed
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from flamvid.cli.process import prepare
from flamvid.index import indexer
from flamvid.index.channel import Switch
from flamvid.index.encoder import FrameEncoder
from flamvid.index.feed import Decoders, Piece, is_last
from flamvid.index.indexer import IndexConfig, index_videos
from flamvid.index.sieve import Sieve
from flamvid.index.stats import Stats
from flamvid.store import StoreWriter
from flamvid.video import isolate
from flamvid.weights.load import load_model


def make_videos(folder: Path, count: int, size: str, seconds: int) -> list[str]:
    """Clips that differ, of a moving test picture with some noise, as a camera's are not flat."""
    made = []
    for number in range(count):
        path = folder / f"clip {number:04}.mp4"
        graph = f"testsrc2=s={size}:r=25:d={seconds},hue=h={number * 37 % 360},noise=alls=8:allf=t"
        encode = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
        encode += ["-metadata", f"title={number}"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
        subprocess.run([*command, "-i", graph, *encode, str(path)], check=True)
        made.append(str(path))
    return made


class PinnedEncoder(FrameEncoder):
    """Keeps its thread on one core while `core` is set."""

    core: int | None = None

    def encode(self, pixels_B3hw: Tensor) -> tuple[Tensor, Tensor]:
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})
        return super().encode(pixels_B3hw)


class DroppingWriter(StoreWriter):
    """Writes what says which store it is, and no video."""

    def commit(self, puts: object) -> None:
        if all(db == "meta" for db, *_ in puts):  # type: ignore[attr-defined]
            super().commit(puts)  # type: ignore[arg-type]


def decode_only(videos: list[str], encoder: FrameEncoder, config: IndexConfig) -> list[Tensor]:
    """What the indexer's decode workers give."""
    with tempfile.TemporaryDirectory() as folder:
        switch, stats, kept = Switch(), Stats(), []
        provenance = encoder.provenance(config.sampled)
        with StoreWriter(Path(folder, "s.lmdb"), provenance) as writer:
            decoders = Decoders(
                writer,
                encoder,
                config.sampling(),
                workers=config.workers,
                timeout=None,
                tell=0,
                stats=stats,
                switch=switch,
            )
            threads = decoders.start(videos, Sieve(writer.reader, stats, config.tries_again))
            working = config.workers
            while working:
                item = decoders.items.get()
                if isinstance(item, Piece):
                    kept.append(item.pixels)
                elif item is not None and is_last(item):
                    working -= 1
            for thread in threads:
                thread.join()
        return kept


def plain(videos: list[str], encoder: FrameEncoder, folder: Path) -> int:
    """A script as it is usually written. Its frames are those shown at the same times, roughly."""
    frames = 0
    for video in videos:
        pictures, pts, due = [], [], Fraction(1, 2)
        with av.open(video) as container:
            for frame in container.decode(video=0):
                if frame.pts * frame.time_base >= due:
                    pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                    pts.append(float(frame.pts * frame.time_base))
                    due += 1
        inputs = encoder.model.transform(torch.stack(pictures).permute(0, 3, 1, 2))
        with torch.inference_mode():
            features = encoder.model.flamingo.encode(inputs)
        np.save(folder / f"{Path(video).stem}.npy", features.numpy().astype(np.float16))
        np.save(folder / f"{Path(video).stem}.pts.npy", np.array(pts))
        frames += len(pts)
    return frames


def end_idle_decoders() -> None:
    """Children that wait for a file keep to the core that they were started on."""
    while isolate._idle:
        isolate._idle.pop().kill()


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def throughput(videos: list[str], encoder: PinnedEncoder, rounds: int, scratch: Path) -> None:
    def index(config: IndexConfig) -> int:
        store = scratch / "lib.lmdb"
        for file in scratch.glob("lib.lmdb*"):
            file.unlink()
        stats = index_videos(videos, store, encoder, config)
        assert stats.indexed == len(videos)
        return stats.frames

    def dropping(config: IndexConfig) -> None:
        indexer.StoreWriter = DroppingWriter  # type: ignore[misc]
        try:
            index(config)
        finally:
            indexer.StoreWriter = StoreWriter  # type: ignore[misc]

    def both_at_once() -> None:
        decoding = threading.Thread(target=decode_only, args=(videos, encoder, one))
        decoding.start()
        encoder.encode(pixels)
        decoding.join()

    cores = sorted(os.sched_getaffinity(0))

    def split(work: Callable[[], object]) -> float:
        """The encoder on the first core; threads and processes that are started now on the last."""
        os.sched_setaffinity(0, cores[-1:])
        encoder.core = cores[0]
        try:
            return timed(work)
        finally:
            os.sched_setaffinity(0, cores)
            encoder.core = None

    one, all_cores = IndexConfig(workers=1), IndexConfig(workers=len(cores))
    pixels = torch.cat(decode_only(videos, encoder, one))
    count = len(pixels)
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        end_idle_decoders()
        torch.set_num_threads(1)
        row = {
            "decode only": split(lambda: decode_only(videos, encoder, one)),
            "encode only": split(lambda: encoder.encode(pixels)),
            "both at once, unconnected": split(both_at_once),
            "index": split(lambda: index(one)),
            "index, nothing written": split(lambda: dropping(one)),
        }
        end_idle_decoders()
        torch.set_num_threads(len(cores))
        row["index, all cores"] = timed(lambda: index(all_cores))
        row["plain script, all cores"] = timed(lambda: plain(videos, encoder, scratch))
        if number:  # the first one warms up
            for name, value in row.items():
                seconds.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(f"{name:30} {count / median:7.1f} frames/s  ({low:.1f} .. {high:.1f} s)")

    def against(one: str, other: str) -> float:
        """How much sooner the other is done, by the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    slower = max("decode only", "encode only", key=lambda name: medians[name])
    print(f"index against {slower}: {against(slower, 'index'):.2f}")
    print(f"index against both at once: {against('both at once, unconnected', 'index'):.2f}")
    print(f"writing costs {100 * (against('index', 'index, nothing written') - 1):.1f}%")
    ratio = against("plain script, all cores", "index, all cores")
    print(f"index against the plain script: {ratio:.2f}")


class Watching:
    """Prints resident memory as videos are done."""

    def __init__(self, every: int) -> None:
        self.every, self.next = every, every

    def progress(self, stats: Stats) -> None:
        if stats.over >= self.next:
            self.next += self.every
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(
                f"{stats.over:5} videos: {pages * os.sysconf('SC_PAGESIZE') >> 20} MiB", flush=True
            )

    def failed(self, source: str, reason: str, message: str) -> None:
        raise RuntimeError(message)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="flamvid-base")
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, metavar="VIDEOS")
    args = parser.parse_args()
    prepare()  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        encoder = PinnedEncoder(load_model(args.model))
        if not args.memory:
            videos = make_videos(scratch, args.videos, args.size, args.seconds)
            throughput(videos, encoder, args.rounds, scratch)
            return
        [first] = make_videos(scratch, 1, args.size, 1)
        videos = []
        for number in range(args.memory):  # a few bytes behind its end make a file another one
            copy = scratch / f"copy {number}.mp4"
            shutil.copy(first, copy)
            with copy.open("ab") as file:
                file.write(b"\0\0\0\x0cfree%04d" % number)
            videos.append(str(copy))
        watching = Watching(max(1, args.memory // 10))
        index_videos(videos, scratch / "lib.lmdb", encoder, IndexConfig(), listener=watching)


if __name__ == "__main__":
    main()
