"""media_attention against OpenFlamingo's formula and SDPA with a mask: medians, interleaved.

python tools/bench/media_attention.py [--rounds N] [--media 1 2 4 ...]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.ops import implementation, media_attention

B, H, S, D, L = 8, 8, 256, 64, 64


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    scores = (q * D**-0.5) @ k.mT
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1) @ v


def timed(run: Callable[[], Tensor], inputs: list[Tensor], backward: bool) -> float:
    start = time.perf_counter()
    out = run()
    if backward:
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--media", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options = parser.parse_args()
    served = implementation("media_attention")
    print(f"{served.name}, {torch.get_num_threads()} threads; medians in ms")
    for tokens, backward in ((S, False), (S, True), (1, False)):
        for M in options.media:
            q, k, v = (
                torch.randn(B, H, n, D, requires_grad=backward) for n in (tokens, M * L, M * L)
            )
            index = torch.arange(tokens) * M // tokens if tokens > 1 else torch.tensor([M - 1])
            index = index.int().expand(B, tokens).contiguous()
            visible = index[:, None, :, None] == torch.arange(M).repeat_interleave(L)
            runs: dict[str, Callable[[], Tensor]] = {
                "ours": lambda: media_attention(q, k, v, index, L),  # noqa: B023
                "dense": lambda: dense(q, k, v, visible),  # noqa: B023
                "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=visible),  # noqa: B023
            }
            times: dict[str, list[float]] = {name: [] for name in runs}
            for turn in range(options.rounds + 1):
                for name, run in runs.items():
                    took = timed(run, [q, k, v], backward)
                    if turn:
                        times[name].append(1e3 * took)
            ms = {name: median(all_) for name, all_ in times.items()}
            what = "forward+backward" if backward else "forward"
            print(
                f"S={tokens} {what} M={M}: ours {ms['ours']:.2f}, dense {ms['dense']:.2f} "
                f"({ms['dense'] / ms['ours']:.2f}x), sdpa {ms['sdpa']:.2f} "
                f"({ms['sdpa'] / ms['ours']:.2f}x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
