"""A day of a stream, as fast as it goes: memory and latency of each policy from hour to hour.

    python tools/bench/soak.py [--hours 24] [--policy merge] [--every 10]

Pictures are made up, two a second: scenes that change after half a minute or so, with noise. The
encoder is a cheap one (means over a grid, and a projection); memory, keys, resampler, triggers and
the language model are those of `flamvid live`, the latter tiny. A process for each policy. Hours
are of the stream. What is held: resident memory grows under 1% from the second hour to the last,
the last hour's latencies are within 10% of the second's, and the cap is never passed.

A day takes about six minutes for each policy on one quiet core. Exit code 1 where a bound breaks.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from flamvid.generate.config import GenerationConfig  # noqa: E402
from flamvid.live.captioner import LiveCaptioner, LiveConfig, sizes_of  # noqa: E402
from flamvid.live.memory import MemoryConfig  # noqa: E402
from flamvid.live.policies import Policy  # noqa: E402
from flamvid.live.trigger import ChangeConfig  # noqa: E402
from flamvid.types import Frames  # noqa: E402
from flamvid.video.events import Event, Frame  # noqa: E402
from flamvid.weights.load import load_model  # noqa: E402
from tests.tiny import make_model  # noqa: E402

FPS, SIDE, GRID, WIDTH = 2.0, 64, 8, 256
QUANTILES = (50, 95, 99)


class CheapEncoder(torch.nn.Module):
    """Pictures to features [X,64,256]: colours of a grid, projected at random."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = torch.nn.AvgPool2d(SIDE // GRID)
        self.project = torch.nn.Linear(3, WIDTH)
        self.clip = None

    def forward(self, pictures_X3HW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.project(self.grid(pictures_X3HW).flatten(2).transpose(1, 2)))


@dataclass
class Counts:
    dropped: int = 0


class Day:
    """So many hours of made-up pictures."""

    name = "synthetic"

    def __init__(self, hours: float) -> None:
        self.stats, self._frames = Counts(), self._make(round(hours * 3600 * FPS))
        self.asked = time.perf_counter()
        self.updates: list[float] = []  # seconds from one frame to the wish for the next

    def get(self, timeout: float | None = None) -> Event | None:
        now = time.perf_counter()
        self.updates.append(now - self.asked)
        frame = next(self._frames, None)
        self.asked = time.perf_counter()
        return frame

    def _make(self, count: int) -> Iterator[Frame]:
        dice = torch.Generator().manual_seed(0)
        scene, until = torch.zeros(3, SIDE, SIDE), 0
        for tick in range(count):
            if tick == until:
                scene = torch.rand(3, GRID, GRID, generator=dice).mul(255)
                scene = scene.repeat_interleave(SIDE // GRID, 1).repeat_interleave(SIDE // GRID, 2)
                until = tick + int(torch.randint(20, 100, (), generator=dice))
            noise = torch.rand(3, SIDE, SIDE, generator=dice).mul(20)
            pixels = (scene * 0.9 + noise).clamp(0, 255).to(torch.uint8)[None]
            at = (tick + 0.5) / FPS
            frames = Frames(pixels, np.array([at]), np.array([1 / FPS]))
            yield Frame(frames, at, time.time())


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(policy: Policy, hours: float, every: float) -> bool:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(str(make_model(Path(folder))))
    torch.manual_seed(0)
    model.flamingo.vision = CheapEncoder().eval()
    memory = MemoryConfig(policy=policy, recent=16, long=16)
    cap = sizes_of(model).most(memory)
    config = LiveConfig(fps=FPS, every=every, on_change=ChangeConfig(), memory=memory)
    live = LiveCaptioner(model, config, GenerationConfig(beams=1, max_tokens=4))
    day = Day(hours)
    over = cues = hour = 0
    rows: list[tuple[float, list[float], list[float]]] = []
    latencies: list[float] = []

    def held(pts: float, features: object) -> None:
        nonlocal over
        over += live.memory.nbytes > cap

    live.on_frame = held
    print(f"{policy}: cap {cap / 1e6:.2f} MB", flush=True)
    for cue in live.watch(day):
        cues += 1
        over += cue.memory > cap
        latencies.append(cue.latency)
        if cue.end >= (hour + 1) * 3600 or cue.why == "end":
            gc.collect()
            rows.append((resident(), _quantiles(day.updates), _quantiles(latencies)))
            hour += 1
            if hour in (1, 2) or hour % 6 == 0 or cue.end >= hours * 3600 - 1:
                _tell(hour, cue.memory, *rows[-1])
            day.updates.clear()
            latencies.clear()
    return _judge(policy, rows, over, cues)


def _quantiles(seconds: list[float]) -> list[float]:
    """Milliseconds."""
    return [float(np.percentile(seconds, q)) * 1e3 for q in QUANTILES]


def _tell(hour: int, memory: int, rss: float, updates: list[float], cues: list[float]) -> None:
    times = " / ".join(f"{x:.2f}" for x in updates)
    said = " / ".join(f"{x:.1f}" for x in cues)
    print(
        f"  hour {hour:3}: resident {rss:.1f} MB, memory {memory / 1e6:.2f} MB, update p50/p95/p99 "
        f"{times} ms, cue {said} ms",
        flush=True,
    )


def _judge(
    policy: Policy,
    rows: list[tuple[float, list[float], list[float]]],
    over: int,
    cues: int,
) -> bool:
    if len(rows) < 3:
        print("  too short to judge: give three hours or more")
        return over == 0
    (rss, before, _), (last, after, _) = rows[1], rows[-1]
    grown = last / rss - 1
    slower = [b / a - 1 for a, b in zip(before, after, strict=True)]
    good = grown < 0.01 and max(slower) < 0.10 and not over
    print(
        f"  {policy}: resident {100 * grown:+.2f}%, update latency "
        + ", ".join(f"p{q} {100 * s:+.1f}%" for q, s in zip(QUANTILES, slower, strict=True))
        + f", cap passed {over} times, {cues} cues: {'good' if good else 'NOT GOOD'}",
        flush=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--policy", type=Policy, choices=list(Policy))
    parser.add_argument("--every", type=float, default=10.0, help="seconds between captions")
    options = parser.parse_args()
    if options.policy:
        return not soak(options.policy, options.hours, options.every)
    print("command:", " ".join(["python", *sys.argv]), flush=True)
    same = [f"--hours={options.hours}", f"--every={options.every}"]
    here = [sys.executable, __file__, *same]
    codes = [subprocess.run([*here, f"--policy={policy}"]).returncode for policy in Policy]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
