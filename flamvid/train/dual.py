"""Contrastive runs: two heads on frozen parts, or a vision encoder and a BERT from scratch.

Which samples an update sees depends on its number alone, so a run that was stopped goes on as if it
had not been. Under torchrun each process takes its share of every batch.

Legend: X frames of a batch, B samples, F feature width, D width of a text's states, C classes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flamvid.models.contrastive import DualHead
from flamvid.train.checkpoint import clear, fitting, latest, save
from flamvid.train.contrastive import ContrastiveStage, contrastive_loss, linear_rate

__all__ = ["HeadPairs", "Pairs", "rows_of", "train_dual"]

Log = Callable[[str], None]


class Pairs(Protocol):
    """Samples, each of one video or picture and some captions, and how a module takes them."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int], rng: random.Random) -> tuple[Tensor, ...]:
        """What the module's `forward` takes for these samples, with a caption drawn for each."""
        ...


def rows_of(step: int, batch: int, size: int, seed: int) -> list[int]:
    """Samples of an update: every one once an epoch, in an order of the seed and the epoch."""
    places = (divmod(at, size) for at in range(step * batch, (step + 1) * batch))
    return [_order(size, f"{seed} {epoch}")[at] for epoch, at in places]


@lru_cache(maxsize=2)
def _order(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def train_dual(
    module: nn.Module,
    pairs: Pairs,
    stage: ContrastiveStage,
    out: Path,
    *,
    seed: int,
    resume: bool,
    log: Log,
    validate: Callable[[], str] | None = None,
) -> None:
    """Train `module`, whose `forward` gives vectors of videos and texts, and the heat.

    Checkpoints lie in `out`. The batch is that of all processes together. Raises WeightsError for a
    checkpoint of another run.
    """
    rank, world = _place()
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": stage.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
    )
    first = _resume(module, optimizer, out, resume, log)
    whole = DistributedDataParallel(module) if world > 1 else module
    batch = stage.batch // world
    began = time.monotonic()
    module.train()
    for step in range(first, stage.steps):
        rows = rows_of(step, batch * world, len(pairs), seed)[rank::world]
        # Of generators of its own, so that a resumed run draws the same.
        torch.manual_seed(seed + step * world + rank)
        inputs = pairs.batch(rows, random.Random(f"{seed} {step} {rank}"))
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * linear_rate(step, stage.steps, stage.warmup)
        videos, texts, heat = whole(*inputs)
        loss = contrastive_loss(videos, texts, heat, stage.smoothing)
        optimizer.zero_grad()
        loss.backward()
        if stage.adaptive_clip:
            adaptive_clip_grad(decayed, stage.adaptive_clip)
        optimizer.step()
        done = step + 1
        if rank == 0 and (done % stage.save_every == 0 or done == stage.steps):
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            save(out / f"step-{done:06d}.pt", {"step": done, **state}, keep=2)
            speed = (done - first) * batch * world / (time.monotonic() - began)
            shown = validate() if validate else ""
            module.train()
            log(f"pairs {done}/{stage.steps} loss {loss.item():.3f} {speed:.0f} pairs/s {shown}")
    module.eval()


def _place() -> tuple[int, int]:
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, out: Path, resume: bool, log: Log
) -> int:
    """The number of updates that were done already, with their state put back."""
    found = latest(out) if resume else None
    if found is None:
        if _place()[0] == 0:
            clear(out)
        return 0
    with fitting(found):
        state: dict[str, Any] = torch.load(found, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    log(f"resumed from {found} at update {state['step']}")
    return int(state["step"])


class HeadPairs:
    """Frozen features and states of samples, pooled once: a run on them takes minutes.

    pooled_XF, logits_XC: of all frames; places: first frame and number of frames of each sample;
    states_KD: of all captions; texts: first caption and number of captions of each sample.
    """

    def __init__(
        self,
        pooled_XF: Tensor,
        logits_XC: Tensor,
        places: Sequence[tuple[int, int]],
        states_KD: Tensor,
        texts: Sequence[tuple[int, int]],
    ) -> None:
        self.pooled_XF, self.logits_XC, self.states_KD = pooled_XF, logits_XC, states_KD
        self.places, self.texts = tuple(places), tuple(texts)

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, rows: Sequence[int], rng: random.Random) -> tuple[Tensor, ...]:
        """Mean features [X,F] and logits [X,C] of some frames of each sample, how many each has
        [B], and the states of one of its captions [B,D].
        """
        frames: list[int] = []
        counts: list[int] = []
        captions: list[int] = []
        for row in rows:
            first, count = self.places[row]
            kept = rng.randint((count + 1) // 2, count)  # as no two looks at a video are alike
            frames += rng.sample(range(first, first + count), kept)
            counts.append(kept)
            start, held = self.texts[row]
            captions.append(start + rng.randrange(held))
        return (
            self.pooled_XF[frames],
            self.logits_XC[frames],
            torch.tensor(counts),
            self.states_KD[captions],
        )


class HeadModule(nn.Module):
    """The two heads alone, as `train_dual` wants them."""

    def __init__(self, head: DualHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, pooled_XF: Tensor, logits_XC: Tensor, counts_B: Tensor, states_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of length 1 of videos and texts, both [B,E], and the heat."""
        classes_CE = self.head.classes() if self.head.config.classes else None
        vectors_XE = self.head.frames(pooled_XF, logits_XC, classes_CE)
        videos = torch.stack([part.mean(0) for part in vectors_XE.split(counts_B.tolist())])
        return F.normalize(videos, dim=-1), self.head.texts(states_BD), self.head.heat()


@torch.no_grad()
def recall(videos_VE: Tensor, texts_KE: Tensor, own_K: Tensor) -> str:
    """How many texts find their video first, and among the first 5 and 10, in percent."""
    alike_KV = texts_KE @ videos_VE.T
    better_K = (alike_KV > alike_KV.gather(1, own_K[:, None])).sum(1)
    shares = [100 * float((better_K < most).float().mean()) for most in (1, 5, 10)]
    return "R@1 {:.1f} R@5 {:.1f} R@10 {:.1f}".format(*shares)
