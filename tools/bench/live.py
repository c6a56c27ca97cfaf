"""What a live caption costs, and how late it comes.

    python tools/bench/live.py cost CLIP [--rounds 5]
    python tools/bench/live.py real-time CLIP [--minutes 10] [--server gstreamer]

cost: at a window of 16 frames, ours (every frame encoded once, its keys kept) against a naive
sliding window, which encodes and resamples the whole window for each caption; in turns, in CPU time
of the process and in multiplications and additions that torch counts, from frames to latents; the
language model's share is the same for both and told apart. At one new frame for each caption and
at four (2 frames a second, a caption every 2 s).

real-time: CLIP over and over as a 720p25 H.264 stream over RTSP from a server on this machine,
GStreamer's (with B-frames; tests/video/gst_server.py says what it needs) or that of our tests,
watched by `flamvid live --fps 2 --every 2s` as a process of its own. Prints how long after the
arrival of the newest frame captions came, by thirds of the time: they must not grow. Exit code 1
where p95 is 1.5 s or more, or the last third's median is a quarter of a second above the first's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch.overrides import BaseTorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import flamvid
from flamvid import video
from flamvid.generate.config import GenerationConfig
from flamvid.live.captioner import LiveCaptioner, LiveConfig
from flamvid.live.memory import MemoryConfig
from flamvid.types import Frames
from flamvid.video.sample import Fps

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.video.live_tools import camera

WINDOW = 16


def cost(clip: Path, rounds: int) -> None:
    model = flamvid.load(device="cpu").model
    model.flamingo.requires_grad_(False)  # or torch can't count
    config = LiveConfig(every=None, memory=MemoryConfig(recent=WINDOW))
    live = LiveCaptioner(model, config, GenerationConfig(beams=1))
    with video.open_source(clip, size=model.transform.decode_size) as opened:
        length = float(opened.pts[-1] + opened.durations[-1])
        at = Fps(WINDOW / length).indices(opened.pts, opened.durations, 0.0, length)
        frames = opened.read(at.tolist())
    singles = [_part(frames, i % len(frames)) for i in range(WINDOW)]
    window_X3HW = torch.cat([one.pixels for one in singles])  # all at once, as a peer would
    for tick, one in enumerate(singles):  # a full memory
        live.memory.add(live._looker.encode(one)[0], tick, tick, tick + 1)

    def ours(new: int) -> torch.Tensor:
        for i in range(new):
            live.memory.add(live._looker.encode(singles[i])[0], i, i, i + 1)
        return live._see()[0]

    def naive(new: int) -> torch.Tensor:
        with torch.inference_mode():
            features = model.flamingo.encode(model.transform(window_X3HW))
            model.name(features)
            return model.flamingo.resampler(features[None])

    print(f"window of {WINDOW} frames, {torch.get_num_threads()} threads; frames to latents")
    for new in (1, 2, 4):
        times: dict[str, list[float]] = {"ours": [], "naive": []}
        for _ in range(rounds + 1):
            for name, run in (("ours", ours), ("naive", naive)):
                began = time.process_time()
                run(new)
                times[name].append(time.process_time() - began)
        cpu = {name: statistics.median(t[1:]) for name, t in times.items()}
        work = {name: _flops(run, new) for name, run in (("ours", ours), ("naive", naive))}
        print(
            f"  {new} new a caption: ours {1e3 * cpu['ours']:.0f} ms CPU, "
            f"{work['ours']:.2f} GFLOP; naive {1e3 * cpu['naive']:.0f} ms, "
            f"{work['naive']:.2f} GFLOP: "
            f"{cpu['naive'] / cpu['ours']:.1f} times less time, "
            f"{work['naive'] / work['ours']:.1f} times less work"
        )
    latents, labels = live._see()
    began = time.process_time()
    for _ in range(rounds):
        live.speaker.caption(latents, labels)
    spent = (time.process_time() - began) / rounds
    print(f"  the language model's share, the same for both: {1e3 * spent:.0f} ms CPU a caption")


def _part(frames: Frames, at: int) -> Frames:
    one = slice(at, at + 1)
    return Frames(frames.pixels[one], frames.pts_seconds[one], frames.duration_seconds[one])


def _flops(run: object, new: int) -> float:
    # Under a mode linear layers are torch's own: it does not count ours.
    with FlopCounterMode(display=False) as counter, BaseTorchFunctionMode():
        run(new)  # type: ignore[operator]
    return counter.get_total_flops() / 1e9


def real_time(clip: Path, minutes: float, server: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out.jsonl"
        with camera(_stream(clip, minutes, folder, server)) as (_, url):
            watch = [sys.executable, "-m", "flamvid", "live", url, "--fps=2", "--every=2s"]
            watcher = subprocess.Popen([*watch, "--sink", str(out)])
            try:
                time.sleep(60 * minutes)
            finally:
                watcher.terminate()
                watcher.wait(30)
        cues = [json.loads(line) for line in out.read_text().splitlines()]
    return _judge([cue for cue in cues if cue["why"] == "every"], cues[-1]["dropped"])


def _stream(clip: Path, minutes: float, folder: Path, server: str) -> Path:
    """What the server plays. GStreamer's ends with its file; ours begins it anew."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(clip), "-an"]
    command += ["-vf", "scale=1280:720,fps=25,format=yuv420p", "-c:v", "libx264", "-g", "50"]
    command += ["-b:v", "3M"]
    if server == "ours":
        once = folder / "once.h264"
        command += ["-bf", "0", "-x264-params", "slices=1:sliced-threads=0"]
        subprocess.run([*command, "-f", "h264", str(once)], check=True)
        return once
    once, whole = folder / "once.mp4", folder / "whole.mp4"
    subprocess.run([*command, str(once)], check=True)
    again = [command[0], "-loglevel", "error", "-stream_loop", "-1", "-i", str(once), "-c", "copy"]
    subprocess.run([*again, "-t", str(60 * minutes + 60), str(whole)], check=True)
    return whole


def _judge(cues: list[dict[str, float]], dropped: int) -> bool:
    late = [cue["latency"] for cue in cues]
    p50, p95, p99 = (float(np.percentile(late, q)) for q in (50, 95, 99))
    third = len(late) // 3
    medians = [statistics.median(late[i * third : (i + 1) * third]) for i in range(3)]
    good = p95 < 1.5 and medians[2] < medians[0] + 0.25
    print(
        f"{len(cues)} captions, frame to cue p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s; "
        f"medians by thirds {' '.join(f'{m:.2f}' for m in medians)} s; {dropped} frames dropped: "
        f"{'good' if good else 'NOT GOOD'}"
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "real-time"))
    parser.add_argument("clip", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--server", choices=("gstreamer", "ours"), default="ours")
    options = parser.parse_args()
    print("command:", " ".join(["python", *sys.argv]), flush=True)
    if options.what == "cost":
        cost(options.clip, options.rounds)
        return 0
    return not real_time(options.clip, options.minutes, options.server)


if __name__ == "__main__":
    sys.exit(main())
