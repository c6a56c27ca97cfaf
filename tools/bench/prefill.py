"""A 32-shot prompt of 33 media through layers of flamvid-base's sizes: ours and the dense formula.

python tools/bench/prefill.py [--rounds N] [--tokens N] [--shots N] [--clock wall|cpu]

Random weights, since only sizes matter. Three figures, each end to end for what it names: the
attention alone; the gated cross-attention layers with everything in them (reading the media,
projections, feed-forward); the whole prefill, which adds the frozen language model. Medians of one
run, interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.models import gated_xattn
from flamvid.models.build import read_model_config
from flamvid.models.gated_xattn import GatedCrossAttention
from flamvid.models.lm import LanguageModel, MediaContext
from flamvid.ops import implementation, media_attention, media_index

MEDIA = 1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def dense(q: Tensor, k: Tensor, v: Tensor, index: Tensor, latents: int) -> Tensor:
    """As OpenFlamingo's MaskedCrossAttention has it."""
    owner = torch.arange(k.shape[2] // latents).repeat_interleave(latents)
    visible = index[:, None, :, None] == owner
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores.masked_fill(~visible, -torch.finfo(scores.dtype).max)
    weights = (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1)
    weights = weights.masked_fill((index < 0)[:, None, :, None], 0.0)
    return weights @ v


def smollm() -> LlamaForCausalLM:
    """The sizes of SmolLM2-135M."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=1024,  # the head is no part of a prefill
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shots", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=20, help="of each shot, its media included")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    torch.manual_seed(0)
    preset = read_model_config("flamvid-base")
    lm = smollm()
    width, latent_width, L = 576, preset.resampler.width, preset.resampler.latents
    at = preset.xattn.positions(lm.config.num_hidden_layers)
    xattns = {i: GatedCrossAttention(preset.xattn, width, latent_width).eval() for i in at}
    for xattn in xattns.values():
        nn.init.constant_(xattn.attn_gate, 0.5)
    model = LanguageModel(lm, xattns)

    M = options.shots + 1
    ids = torch.randint(8, 1024, (1, M * options.tokens))
    ids[:, :: options.tokens] = MEDIA
    index = media_index(ids, MEDIA)
    latents = torch.randn(1, M, L, latent_width)
    x = torch.randn(1, ids.shape[1], width)
    q = torch.randn(1, preset.xattn.heads, ids.shape[1], preset.xattn.head_width)
    k, v = torch.randn(2, 1, preset.xattn.heads, M * L, preset.xattn.head_width)

    def attention() -> Tensor:
        return gated_xattn.media_attention(q, k, v, index, L)

    def layers() -> Tensor:
        out = x
        for xattn in xattns.values():
            out = xattn(out, xattn.read(latents), index)
        return out

    def prefill() -> Tensor:
        read = tuple(xattn.read(latents) for xattn in xattns.values())
        return model(ids, MediaContext(read, index))

    served = implementation("media_attention_forward")
    print(
        f"{served.name}, {torch.get_num_threads()} threads, {options.clock} time: "
        f"{M} media of {L} latents, "
        f"{ids.shape[1]} tokens, {len(xattns)} gated layers in {lm.config.num_hidden_layers}"
    )
    parts: dict[str, Callable[[], Tensor]] = {
        "attention alone, one layer": attention,
        "gated cross-attention layers": layers,
        "whole prefill": prefill,
    }
    for name, run in parts.items():
        ours, theirs, error = compared(run, options.rounds, options.clock)
        print(
            f"{name}: ours {ours:.1f} ms, dense {theirs:.1f} ms: {theirs / ours:.2f}x "
            f"(outputs differ by {error:.1e})",
            flush=True,
        )


def compared(run: Callable[[], Tensor], rounds: int, clock: str) -> tuple[float, float, float]:
    """Medians in ms of ours and of the dense formula, and how far the outputs are apart."""
    times: dict[str, list[float]] = {"ours": [], "dense": []}
    outs: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, op in (("ours", media_attention), ("dense", dense)):
            with mock.patch.object(gated_xattn, "media_attention", op):
                start = CLOCKS[clock]()
                outs[name] = run()
                took = 1e3 * (CLOCKS[clock]() - start)
            if turn:
                times[name].append(took)
    error = float((outs["ours"] - outs["dense"]).abs().max())
    return median(times["ours"]), median(times["dense"]), error


if __name__ == "__main__":
    main()
