"""One update of training: ours, and OpenFlamingo's step with the same weights and batches.

python tools/bench/train_step.py [--rounds N] [--every N] [--precision default float32 bfloat16]

A random model in the shape of OpenFlamingo's at a quarter of its width: MPT-1B's architecture with
12 layers of 512 and its 50,280 tokens, a gated cross-attention before every fourth layer as in its
9B (--every), 256 x 256 features of a picture, a resampler of 6 layers and 64 latents. An update is
a batch of pages (256 tokens, 5 pictures) and one of pairs (32 tokens, 1 picture), from features on:
with frozen vision those are the same on both sides, and ours come from the disk after one epoch.

The peer is its train_one_epoch, line by line over its own layers (tests/weights/reference.py): the
LM's embeddings learn, so gradients pass through all layers into a dense table with two moments, of
which all rows but those of the two new tokens are then set to 0; a backward pass for each corpus;
logits of every token; a dense mask over all media. "default" is what each side does untold: the
peer float32 (--precision fp32), ours run.precision "auto", bfloat16 products where the CPU is fast
at them. In bfloat16 the peer has torch's autocast, as its amp_bf16. Both losses must agree.

Each side runs in a process of its own, in turns, which keeps what it frees as `flamvid train` does;
speed is the median. Memory is the highest resident set of an update, of the whole process and above
what it took before it had a model. The bar is for the whole process.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.cli.process import prepare
from flamvid.data.collate import Batch
from flamvid.models.lm import decoder_layers
from flamvid.models.mosaic import MosaicForCausalLM
from flamvid.train.chunks import chunks
from flamvid.train.objective import Objective
from flamvid.train.optimizer import OptimConfig, make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.precision import halve_frozen, halves, precision
from flamvid.train.update import Updater
from flamvid.train.world import World

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench.peers import END, MEDIA, MPT, VOCAB, OpenFlamingo, our_flamingo

WIDTH, PATCHES = 256, 256
WEIGHTS = {"pages": 1.0, "pairs": 0.2}
SPEED_BAR, MEMORY_BAR = 2.0, 0.5
PRECISIONS = ("default", "float32", "bfloat16")
MEMORY = ("the whole process", "above a bare process")
Step = Callable[[list[Batch]], dict[str, float]]


class Update(NamedTuple):
    """Of an update: seconds, losses, and peaks of memory in MB, as in MEMORY."""

    seconds: float
    losses: dict[str, float]
    memory: tuple[float, ...]


def batches(number: int) -> list[Batch]:
    """A batch of each corpus, as `collate` gives them."""
    rng = torch.Generator().manual_seed(number)
    return [_batch("pages", 4, 256, 5, rng), _batch("pairs", 8, 32, 1, rng)]


def _batch(corpus: str, rows: int, S: int, media: int, rng: torch.Generator) -> Batch:
    ids = torch.randint(8, END, (rows, S), generator=rng)
    for at in range(media):
        ids[:, at * S // media] = MEDIA
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1)
    targets[targets == MEDIA] = -100
    # Texts are of many lengths; the rest is padding.
    lengths = torch.randint(S // 2, S + 1, (rows, 1), generator=rng)
    ids[torch.arange(S) >= lengths] = END
    targets[torch.arange(S) >= lengths] = -100
    features = torch.randn(rows, media, 1, PATCHES, WIDTH, generator=rng)
    ahead, counts = torch.zeros(rows, dtype=torch.bool), torch.ones(rows, media, dtype=torch.int64)
    keys = tuple(str(row) for row in range(rows))
    return Batch(corpus, keys, ids, targets, ahead, counts, features=features)


class Peer(OpenFlamingo):
    """OpenFlamingo's Flamingo, from the features of pictures on, with open gates."""

    def __init__(self, every: int) -> None:
        super().__init__(MosaicForCausalLM(MPT), WIDTH, every)
        for name, parameter in self.named_parameters():
            if name.endswith("gate"):
                nn.init.constant_(parameter, 0.5)

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss per token, as transformers computes it of all logits."""
        features = batch.features
        assert features is not None
        media = self.perceiver(features[:, :, 0])
        for layer in self.blocks:
            layer.vis_x, layer.media_locations = media, batch.ids == MEDIA
        hidden = self.lang_encoder.transformer(batch.ids).last_hidden_state
        logits = self.lang_encoder.lm_head(hidden).float()
        labels = F.pad(batch.targets[:, :-1], (1, 0), value=-100)
        shifted = logits[..., :-1, :].contiguous().view(-1, VOCAB)
        return F.cross_entropy(shifted, labels[..., 1:].contiguous().view(-1))


def peer_step(every: int, half: bool) -> Step:
    """`train_one_epoch`: two losses, one embedding gradient cut down to two rows, one step."""
    model = Peer(every).with_plain_layers()
    model.requires_grad_(False)
    model.perceiver.requires_grad_(True)
    table = model.lang_encoder.transformer.wte.weight.requires_grad_(True)
    for layer in model.blocks:
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "gated" in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "gated" not in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)

    def step(update: list[Batch]) -> dict[str, float]:
        losses = {}
        for batch in update:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model(batch)
            (loss * WEIGHTS[batch.corpus]).backward()
            losses[batch.corpus] = loss.item()
        assert table.grad is not None
        mask = torch.zeros_like(table.grad)
        mask[[END, MEDIA]] = 1
        table.grad = table.grad * mask
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return losses

    return step


def our_step(every: int, half: bool) -> Step:
    """The updater of `flamvid train`, of the same weights."""
    peer = Peer(every)  # first, with the random numbers that it has by itself
    lm = MosaicForCausalLM(MPT)
    flamingo = our_flamingo(peer, lm, WIDTH, every).train()
    flamingo.lm.add_tokens([END, MEDIA])
    if half:
        halve_frozen(decoder_layers(lm))
    parallel = Parallel(Objective(flamingo, MEDIA), World())
    optimizer = make_optimizer(parallel.trained(), OptimConfig())
    updater = Updater(parallel, optimizer, WEIGHTS, 1.0, partial(chunks, most=256))  # as on any CPU
    return lambda update: dict(updater(update).losses)


def serve(side: str, every: int, how: str, threads: int, pipe: Connection) -> None:
    """Make an update for each number that comes: seconds, losses, and memory in MB."""
    prepare()  # both sides keep what they free, as `flamvid train` does
    torch.set_num_threads(threads)
    batches(0)
    bare = _memory("VmRSS")
    torch.manual_seed(0)
    if how == "default":
        how = "auto" if side == "ours" else "float32"
    half = halves(how)
    step = our_step(every, half) if side == "ours" else peer_step(every, half)
    gc.collect()
    with precision(how if side == "ours" else "float32"):
        while (number := pipe.recv()) is not None:
            update = batches(number)
            _reset()
            start = time.perf_counter()
            losses = step(update)
            took = time.perf_counter() - start
            peak = _memory("VmHWM")
            pipe.send(Update(took, losses, (peak, peak - bare)))


def _memory(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def _reset() -> None:
    """Forget the highest resident set so far."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS)
    args = parser.parse_args()
    prepare()
    return max([compare(how, args) for how in args.precision or PRECISIONS])


def compare(how: str, args: argparse.Namespace) -> int:
    """Both sides in one precision; 0 where the bars are met."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for side in ("ours", "peer"):
        pipes[side], far = context.Pipe()
        job = (side, args.every, how, torch.get_num_threads(), far)
        processes.append(context.Process(target=serve, args=job, daemon=True))
        processes[-1].start()
    found: dict[str, list[Update]] = {"ours": [], "peer": []}
    for number in range(args.rounds + 1):
        for side, pipe in pipes.items():
            pipe.send(number)
            found[side].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()

    first = {side: runs[0].losses for side, runs in found.items()}
    gap = max(abs(first["ours"][c] - first["peer"][c]) for c in WEIGHTS)
    print(f"{how}: losses of the first update differ by {gap:.1e}")
    rows = sum(len(b.keys) for b in batches(0))
    # The first update makes the moments, and is slower.
    speed = {side: rows / median(run.seconds for run in runs[1:]) for side, runs in found.items()}
    faster = speed["ours"] / speed["peer"]
    told = f"{speed['ours']:.2f} and {speed['peer']:.2f}"
    print(f"  samples/s: {told}, {faster:.2f}x as many (bar {SPEED_BAR})")
    peaks = {
        side: [max(run.memory[at] for run in runs[1:]) for at in range(len(MEMORY))]
        for side, runs in found.items()
    }
    smaller = []
    for what, ours, peer in zip(MEMORY, peaks["ours"], peaks["peer"], strict=True):
        smaller.append(ours / peer)
        print(f"  peak MB, {what}: {ours:.0f} and {peer:.0f}, {smaller[-1]:.2f}x as much")
    print(f"  (bar {MEMORY_BAR} of the whole process)", flush=True)
    return 0 if gap < 0.05 and faster >= SPEED_BAR and smaller[0] <= MEMORY_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
