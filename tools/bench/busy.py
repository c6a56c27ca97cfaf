"""A caption on a machine that is busy with something else, with and without spinning threads.

    python tools/bench/busy.py CLIP [--rounds 3]

One process keeps one core busy; the command's setting (GOMP_SPINCOUNT=2000) and the default of
libgomp take turns. Then the same on the idle machine. The malloc settings are the same for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CAPTION = """
import sys, time
from flamvid.cli.process import keep_freed_memory
keep_freed_memory()
import flamvid
captioner = flamvid.load()
captioner.caption(sys.argv[1])
began = time.perf_counter()
captioner.caption(sys.argv[1])
print(time.perf_counter() - began)
"""


@contextmanager
def busy(cores: int) -> Iterator[None]:
    """So many processes that do nothing but count."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def caption(clip: str, setting: dict[str, str]) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | setting
    command = [sys.executable, "-c", CAPTION, clip]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("command:", " ".join(["python", *sys.argv]))
    settings: dict[str, dict[str, str]] = {"ours": {"GOMP_SPINCOUNT": "2000"}, "default": {}}
    for hogs in (1, 0):
        times: dict[str, list[float]] = {name: [] for name in settings}
        with busy(hogs):
            for _ in range(options.rounds):
                for name, setting in settings.items():
                    times[name].append(caption(options.clip, setting))
        ours, default = (statistics.median(times[name]) for name in settings)
        print(f"{hogs} busy core: ours {ours:.2f} s, default {default:.2f} s: {default / ours:.2f}")


if __name__ == "__main__":
    main()
