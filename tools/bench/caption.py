"""What a user waits for: help, loading, a caption of each clip; and the memory it takes.

    python tools/bench/caption.py --clips FOLDER [--rounds 5]

Loading and help are measured as new processes, captions once a model is loaded; peak memory is that
of a process that captions all clips, its decode child beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LOAD = """
import time
began = time.perf_counter()
import flamvid.api
imported = time.perf_counter()
from flamvid.weights.load import load_model
load_model("flamvid-base")
print(imported - began, time.perf_counter() - imported)
"""

CAPTION = """
import json, resource, sys, time
from flamvid.cli.process import prepare
prepare()
import flamvid
captioner = flamvid.load()
times = {}
for _ in range(int(sys.argv[1])):
    for clip in sys.argv[2:]:
        began = time.perf_counter()
        captioner.caption(clip)
        times.setdefault(clip, []).append(time.perf_counter() - began)
from flamvid.video import isolate
children = [open(f"/proc/{child._process.pid}/status").read() for child in isolate._idle]
peak = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
peak.append(max(int(status.partition("VmHWM:")[2].split()[0]) for status in children))
print(json.dumps({"times": times, "peak": peak}))
"""


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def seconds(*command: str) -> float:
    began = time.perf_counter()
    run(*command)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("command:", " ".join(["python", *sys.argv]))

    flamvid = str(Path(sys.executable).with_name("flamvid"))
    helps = [seconds(flamvid, "--help") for _ in range(options.rounds)]
    print(f"flamvid --help: {statistics.median(helps):.3f} s")
    loads = [tuple(map(float, run(sys.executable, "-c", LOAD).split()[-2:])) for _ in range(3)]
    imports, models = (statistics.median(column) for column in zip(*loads, strict=True))
    print(f"loading flamvid-base from the cache: {models:.2f} s, after {imports:.2f} s of imports")

    kinds = {".mp4", ".mkv", ".avi", ".webm", ".mov"}
    clips = [str(clip) for clip in sorted(options.clips.iterdir()) if clip.suffix in kinds]
    found = json.loads(run(sys.executable, "-c", CAPTION, str(options.rounds), *clips))
    for clip, times in found["times"].items():
        print(f"{statistics.median(times):6.2f} s  {Path(clip).name}")
    worst = max(statistics.median(times) for times in found["times"].values())
    own, child = (kib / 2**20 for kib in found["peak"])
    print(
        f"slowest clip {worst:.2f} s; peak memory {own:.2f} GiB and {child:.2f} GiB (decode child)"
    )


if __name__ == "__main__":
    main()
