"""media_attention against OpenFlamingo's formula and SDPA with a mask: time and memory.

python tools/bench/media_attention.py [--decode] [--rounds N] [--media 1 2 4 ...] [--clock ...]

Medians of one run, the three interleaved; the peak is of one forward and backward pass, beyond what
stood in memory before and beyond the gradients that come out. Freed memory is kept, for all three,
as flamvid's processes keep it: else pages that are mapped anew are most of a short call. On a
machine that is shared, the CPU time of this process (--clock cpu) says more than the wall's.
"""

from __future__ import annotations

import argparse
import ctypes
import random
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


def problem(
    tokens: int, M: int, backward: bool, *, projected: bool = False
) -> tuple[Runs, list[Tensor]]:
    """The three rivals on one problem, and its q, k, v. All work that depends on the mask alone
    is done before: for the rivals the mask, for us the index.

    projected: keys and values are views of one projection [B,M*L,2*H*d], as layers keep them while
    they decode; else each head has its own in one piece."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D, requires_grad=backward) for n in (tokens, M * L, M * L))
    if projected:
        both = torch.randn(B, M * L, 2 * H * D).chunk(2, dim=-1)
        k, v = (x.unflatten(-1, (H, D)).transpose(1, 2) for x in both)
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
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            took = once(run, inputs, backward, clock)
            if turn:
                times[name].append(took)
    return {name: median(all_) for name, all_ in times.items()}


@torch.inference_mode()
def decode(media: Sequence[int], rounds: int, clock: str, *, projected: bool) -> None:
    """One token that sees the last of M media. A decoder's weights pass through the cache between
    two calls, and so do 64 MiB here. All M take turns in an order that is drawn, so that what is
    left of another's call, or a busy moment of the machine, meets each M alike."""
    flush, order = torch.zeros(2**24), random.Random(0)
    problems = {M: problem(1, M, False, projected=projected)[0] for M in media}
    found = {M: dict[str, list[float]]() for M in media}
    for turn in range(rounds + 1):
        for name in problems[media[0]]:
            for M in order.sample(media, len(media)):
                flush.add_(1)
                took = once(problems[M][name], (), False, clock)
                if turn:
                    found[M].setdefault(name, []).append(took)
    where = "as layers keep them" if projected else "each head in one piece"
    for M, times in found.items():
        report(f"S=1 M={M}, keys {where}", {name: median(all_) for name, all_ in times.items()})
    ours = [median(times["ours"]) for times in found.values()]
    print(f"  the slowest M takes {max(ours) / min(ours):.3f} times as long as the quickest")


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
    parser.add_argument("--decode", action="store_true", help="measure decoding alone")
    options = parser.parse_args()
    prepare()
    clock: str = options.clock
    served = implementation("media_attention_forward")
    print(f"{served.name}, {torch.get_num_threads()} threads; B={B} H={H} d={D} L={L} float32")
    print(f"medians in ms of {clock} time; in brackets, how many times ours goes into theirs")
    for tokens, backward in () if options.decode else ((S, False), (S, True)):
        for M in options.media:
            runs, inputs = problem(tokens, M, backward)
            ms = medians(runs, inputs, backward, options.rounds, clock)
            what = "forward+backward" if backward else "forward"
            report(f"S={tokens} {what} M={M}", ms)
    for projected in (True, False):
        decode(options.media, 6 * options.rounds, clock, projected=projected)
    if options.decode:
        return
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
