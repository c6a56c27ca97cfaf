"""media_attention against OpenFlamingo's formula and SDPA with a mask: time and memory.

python tools/bench/media_attention.py [--rounds N] [--media 1 2 4 ...] [--clock wall|cpu]

Medians of one run, the three interleaved; the peak is of one forward and backward pass, beyond what
stood in memory before and beyond the gradients that come out. Freed memory is kept, for all three,
as flamvid's processes keep it: else pages that are mapped anew are most of a short call. On a
machine that is shared, the CPU time of this process (--clock cpu) says more than the wall's.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.cli.process import prepare
from flamvid.ops import implementation, media_attention

B, H, S, D, L = 8, 8, 256, 64, 64
Runs = dict[str, Callable[[], Tensor]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """As OpenFlamingo's MaskedCrossAttention has it."""
    scores = (q * D**-0.5) @ k.mT
    scores = scores.masked_fill(~visible, -torch.finfo(scores.dtype).max)
    return (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1) @ v


def problem(tokens: int, M: int, backward: bool) -> tuple[Runs, list[Tensor]]:
    """The three rivals on one problem, and its q, k, v. All work that depends on the mask alone
    is done before: for the rivals the mask, for us the index."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D, requires_grad=backward) for n in (tokens, M * L, M * L))
    index = torch.arange(tokens) * M // tokens if tokens > 1 else torch.tensor([M - 1])
    index = index.int().expand(B, tokens).contiguous()
    visible = index[:, None, :, None] == torch.arange(M).repeat_interleave(L)
    runs: Runs = {
        "ours": lambda: media_attention(q, k, v, index, L),
        "dense": lambda: dense(q, k, v, visible),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=visible),
    }
    return runs, [q, k, v]


def once(
    run: Callable[[], Tensor], inputs: Sequence[Tensor], backward: bool, clock: str = "wall"
) -> float:
    start = CLOCKS[clock]()
    out = run()
    if backward:
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    return 1e3 * (CLOCKS[clock]() - start)


def medians(
    runs: Runs,
    inputs: Sequence[Tensor],
    backward: bool,
    rounds: int,
    clock: str,
    flush: Tensor | None = None,
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if flush is not None:
                flush.add_(1)
            took = once(run, inputs, backward, clock)
            if turn:
                times[name].append(took)
    return {name: median(all_) for name, all_ in times.items()}


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> float:
    """MiB that one forward and backward pass takes at most, without the gradients it returns."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    once(run, inputs, backward=True)
    gradients = sum(x.numel() * x.element_size() for x in inputs) / 2**20
    return memory("VmHWM") - before - gradients


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--media", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    prepare()
    clock: str = options.clock
    served = implementation("media_attention_forward")
    print(f"{served.name}, {torch.get_num_threads()} threads; B={B} H={H} d={D} L={L} float32")
    print(f"medians in ms of {clock} time; in brackets, how many times ours goes into theirs")
    for tokens, backward in ((S, False), (S, True)):
        for M in options.media:
            runs, inputs = problem(tokens, M, backward)
            ms = medians(runs, inputs, backward, options.rounds, clock)
            what = "forward+backward" if backward else "forward"
            report(f"S={tokens} {what} M={M}", ms)
    # A decoder's weights pass through the cache between two calls: so do 64 MiB here.
    flush = torch.zeros(2**24)
    for M in options.media:
        runs, inputs = problem(1, M, False)
        ms = medians(runs, inputs, False, 6 * options.rounds, clock, flush)
        report(f"S=1 M={M}, caches cold", ms)
    print("peak memory of forward+backward, MiB")
    for M in options.media:
        runs, inputs = problem(S, M, True)
        for run in runs.values():
            once(run, inputs, True)
        found = {name: median(peak(run, inputs) for _ in range(3)) for name, run in runs.items()}
        print(f"S={S} M={M}: " + ", ".join(f"{name} {mib:.0f}" for name, mib in found.items()))


def report(what: str, ms: dict[str, float]) -> None:
    theirs = (f"{name} {ms[name]:.2f} ({ms[name] / ms['ours']:.2f}x)" for name in ("dense", "sdpa"))
    print(f"{what}: ours {ms['ours']:.3f}, {', '.join(theirs)}", flush=True)


if __name__ == "__main__":
    main()
