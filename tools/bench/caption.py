"""What a user waits for: help, loading, first and later captions, tokens; and the memory it takes.

    python tools/bench/caption.py --clips FOLDER [--rounds 5]

Loading and help are measured as new processes, captions once a model is loaded; peak memory is that
of a process that captions all clips, its decode child beside it. The first caption is the whole
command on the first clip, beside a process that only imports torch and transformers; tokens are
those of a greedy search with a clip in view, beside transformers' `generate` on the bare language
model in float32. Both sides of each ratio are interleaved.
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

TOKENS = """
import json, logging, sys, time
from flamvid.cli.process import prepare
prepare()
import torch
from transformers import AutoModelForCausalLM, logging as quiet
quiet.set_verbosity_error()
quiet.disable_progress_bar()
import flamvid
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.ops import media_index
from flamvid.weights import hub
COUNT = 32
captioner = flamvid.load()
model = captioner.model
seen = captioner.see(sys.argv[2])
ids = torch.tensor([model.prompts.caption("a man and a woman are", ["guitar", "stage"])])
index = media_index(ids, model.prompts.media_id)
lm = AutoModelForCausalLM.from_pretrained(hub.resolve(model.config.lm), dtype=torch.float32)
search = GenerationConfig(beams=1, min_tokens=COUNT, max_tokens=COUNT)

def ours():
    end = model.prompts.end_id
    generate(model.flamingo, seen.latents[None], ids, index, end, search, head=model.head)

def theirs():
    lm.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=COUNT,
                max_new_tokens=COUNT, do_sample=False, pad_token_id=0)

times = {"ours": [], "theirs": []}
for _ in range(int(sys.argv[1]) + 1):
    for name, write in (("ours", ours), ("theirs", theirs)):
        began = time.perf_counter()
        with torch.inference_mode():
            write()
        times[name].append(COUNT / (time.perf_counter() - began))
print(json.dumps({name: speeds[1:] for name, speeds in times.items()}))
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
    cold: dict[str, list[float]] = {"caption": [], "import": []}
    for _ in range(options.rounds):
        cold["caption"].append(seconds(flamvid, "caption", clips[0]))
        cold["import"].append(seconds(sys.executable, "-c", "import torch, transformers"))
    first, least = (statistics.median(cold[name]) for name in ("caption", "import"))
    print(
        f"first caption {first:.2f} s, importing torch and transformers {least:.2f} s: "
        f"{first / least:.2f}x"
    )
    speeds = json.loads(run(sys.executable, "-c", TOKENS, str(options.rounds), clips[0]))
    ours, theirs = (statistics.median(speeds[name]) for name in ("ours", "theirs"))
    print(
        f"{ours:.1f} tokens/s, transformers' generate on the bare language model {theirs:.1f}: "
        f"{ours / theirs:.2f}x"
    )
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
