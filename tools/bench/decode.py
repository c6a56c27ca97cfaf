"""Reading frames: flamvid against raw decord, PyAV and torchcodec, all in one run.

    python tools/bench/decode.py [--clips FOLDER] [--rounds 9]

Prints, per clip, the median time of 8 uniform frames at 224 x 224; then how memory grows over ten
minutes sampled at 1 fps, and how soon a two-hour file gives its first frame. A side that gives
other frames than ffmpeg shows is marked wrong: its time is of no use. torchcodec takes part where
it can be imported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from flamvid import video
from flamvid.video.isolate import warm_up
from flamvid.video.live import open_live
from flamvid.video.sample import Fps, Uniform
from flamvid.video.verify import verify

sys.modules["nvidia"] = None  # type: ignore[assignment]  # decord loads every CUDA library there is
import av  # noqa: E402
import decord  # noqa: E402

SIZE, COUNT = 224, 8
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def by_flamvid(path: str) -> list[int]:
    with video.open(path, size=(SIZE, SIZE)) as source:
        at = Uniform(COUNT).indices(source.pts, source.durations).tolist()
        source.read(at)
        return at


def by_decord(path: str) -> list[int]:
    reader = decord.VideoReader(path, width=SIZE, height=SIZE)
    at = [int((i + 0.5) / COUNT * len(reader)) for i in range(COUNT)]
    reader.get_batch(at).asnumpy()
    return at


def by_pyav(path: str) -> list[int]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        pts = sorted(p for p, _ in packets)
        keys = sorted(p for p, key in packets if key)
        at = [int((i + 0.5) / COUNT * len(pts)) for i in range(COUNT)]
        frames, last = None, None
        for i in at:
            key = keys[max(bisect_right(keys, pts[i]) - 1, 0)]
            if frames is None or key > last:
                container.seek(key, stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                last = frame.pts
                if frame.pts >= pts[i]:
                    break
            frame.reformat(SIZE, SIZE, "rgb24", interpolation="BICUBIC").to_ndarray()
        return at


def by_torchcodec(path: str) -> list[int]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(path, transforms=[Resize((SIZE, SIZE))])
    at = [int((i + 0.5) / COUNT * len(decoder)) for i in range(COUNT)]
    decoder.get_frames_at(at)
    return at


def sides() -> dict[str, Callable[[str], list[int]]]:
    out = {"flamvid": by_flamvid, "decord": by_decord, "PyAV": by_pyav}
    try:
        import torchcodec.decoders  # noqa: F401

        out["torchcodec"] = by_torchcodec
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchcodec takes no part: {str(error).splitlines()[0]}")
    return out


def generate(folder: Path, name: str, size: str, seconds: int, times: int = 1) -> Path:
    """A synthetic clip, repeated without coding it again to make a long one."""
    once, out = folder / f"once-{name}", folder / name
    graph = f"testsrc2=s={size}:r=25:d={seconds}"
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-g", "50", "-pix_fmt", "yuv420p"]
    quiet = [FFMPEG, "-loglevel", "error", "-y"]
    subprocess.run([*quiet, "-f", "lavfi", "-i", graph, *encode, once], check=True)
    loop = ["-stream_loop", str(times - 1), "-i", once, "-c", "copy", out]
    subprocess.run([*quiet, *loop], check=True)
    return out


def compare(clips: list[Path], rounds: int) -> None:
    """Medians, rounds of the sides interleaved."""
    named = sides()
    print(
        f"{'ms, median of ' + str(rounds):<38}" + "".join(f"{name:>12}" for name in named), "ratio"
    )
    for clip in clips:
        times: dict[str, list[float]] = {name: [] for name in named}
        counts = dict.fromkeys(named, 0)
        broken: set[str] = set()
        for _ in range(rounds):
            for name, side in named.items():
                began = time.perf_counter()
                try:
                    counts[name] = max(counts[name], side(str(clip))[-1])
                except Exception:
                    broken.add(name)
                times[name].append(time.perf_counter() - began)
        # The last of 8 uniform frames tells how many frames a side believes in.
        wrong = broken | {n for n in named if abs(counts[n] - counts["flamvid"]) > 1}
        median = {name: 1000 * statistics.median(t) for name, t in times.items()}
        rivals = [median[n] for n in named if n != "flamvid" and n not in wrong]
        cells = "".join(f"{median[n]:>11.1f}{'!' if n in wrong else ' '}" for n in named)
        ratio = f"{min(rivals) / median['flamvid']:.2f}" if rivals else "-"
        audit = verify(clip)
        right = "" if not audit.differences else " OURS IS WRONG"
        print(f"{clip.name:<38}{cells} {ratio}  {audit.decoder}{right}")
    print("ratio: the fastest rival's time to ours; ! = other frames than ffmpeg shows, left out")


def resident(pid: int) -> float:
    """MiB of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(folder: Path) -> None:
    """Ten minutes at 1 fps, in chunks of 8 frames: resident memory of us and of our child."""
    clip = generate(folder, "ten-minutes.mp4", "1280x720", 30, times=20)
    with video.open(clip, size=(SIZE, SIZE)) as source:
        child = source._child._process.pid
        at = Fps(1.0).indices(source.pts, source.durations).tolist()
        ours, theirs = [], []
        for first in range(0, len(at), 8):
            source.read(at[first : first + 8])
            ours.append(resident(os.getpid()))
            theirs.append(resident(child))
    half = len(ours) // 4  # the first chunks fill caches
    minutes = np.arange(len(ours))[half:] * 8 / 60
    for name, values in (("this process", ours), ("decode child", theirs)):
        slope = np.polyfit(minutes, values[half:], 1)[0]
        print(f"10 min at 1 fps, {name}: {values[-1]:.0f} MiB, slope {slope:+.3f} MiB per minute")


def start(folder: Path) -> None:
    """Two hours at 0.2 fps: seconds until the first frames are here."""
    for name in ("two-hours.mp4", "two-hours.mkv"):
        clip = generate(folder, name, "320x180", 60, times=120)
        clip.read_bytes()  # into the page cache: the speed of a disk is not ours
        began = time.perf_counter()
        with video.open(clip, size=(SIZE, SIZE)) as source:
            at = Fps(0.2).indices(source.pts, source.durations).tolist()
            source.read(at[:8])
            took = time.perf_counter() - began
        print(f"{name}: {len(at)} frames at 0.2 fps, the first 8 after {took:.2f} s")
    clip = generate(folder, "two-hours.ts", "320x180", 60, times=120)
    began = time.perf_counter()
    with open_live("-", size=(SIZE, SIZE), stdin=clip.open("rb")) as live:
        next(live.frames(fps=0.2))
        print(f"two-hours.ts, forward: the first frame after {time.perf_counter() - began:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, help="a folder of real clips")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print("command:", " ".join(["python", *sys.argv]), f"({cores} of {os.cpu_count()} cores)")
    warm_up()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kinds = {".mp4", ".mkv", ".avi", ".webm", ".mov"}
        real = sorted(options.clips.iterdir()) if options.clips else []
        clips = [clip for clip in real if clip.suffix in kinds]
        clips += [generate(folder, f"generated-{s}.mp4", s, 5) for s in ("1280x720", "1920x1080")]
        compare(clips, options.rounds)
        memory(folder)
        start(folder)


if __name__ == "__main__":
    main()
