"""A linear model whose gradients are known, and batches for it and for a tiny Flamingo.

Run as a script, it trains in as many processes as torchrun starts, and prints what came of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.data.collate import Batch
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.vision import TimmEncoder

MEDIA, VOCAB, FEATURES = 1, 40, 12


class Linear(nn.Module):
    """The summed loss of a batch is the dot product of its features with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(FEATURES))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters()

    def forward(self, batch: Batch | None) -> Tensor:
        if batch is None:
            return self.weight.sum() * 0
        assert batch.features is not None
        return (batch.features.flatten(0, 3).sum(0) * self.weight).sum()


def make_flamingo(first: int = 1, layers: int = 3, seed: int = 0) -> Flamingo:
    """A random Flamingo whose gates are open, with a new token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        initializer_range=0.2,
    )
    resampler = ResamplerConfig(
        features=FEATURES, width=8, depth=1, heads=2, head_width=4, latents=3, frames=4
    )
    flamingo = Flamingo(
        TimmEncoder("test_efficientnet"),
        PerceiverResampler(resampler),
        LlamaForCausalLM(config),
        XattnConfig(first=first, heads=2, head_width=4, ffw_ratio=2),
    )
    flamingo.vision.requires_grad_(False)
    flamingo.lm.add_tokens([VOCAB - 1])
    for name, parameter in flamingo.trained():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.5)
    return flamingo.train()


def make_batch(corpus: str = "pages", rows: int = 4, seed: int = 0, media: int = 2) -> Batch:
    """Rows of text with media, of which the first few tokens and the padding are not scored."""
    rng = torch.Generator().manual_seed(seed)
    S, T = 10, 3
    ids = torch.randint(2, VOCAB, (rows, S), generator=rng)
    ids[:, 3] = VOCAB - 1  # the new token
    for at in range(media):
        ids[:, 1 + 4 * at] = MEDIA
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1)
    targets[targets == MEDIA] = -100
    lengths = torch.randint(S // 2, S + 1, (rows, 1), generator=rng)
    targets[torch.arange(S) >= lengths - 1] = -100
    features = torch.randn(rows, media, T, 4, FEATURES, generator=rng)
    counts = torch.randint(1, T + 1, (rows, media), generator=rng)
    return Batch(
        corpus=corpus,
        keys=tuple(f"{corpus}-{seed}-{row}" for row in range(rows)),
        ids=ids,
        targets=targets,
        attend_next=torch.rand(rows, generator=rng) < 0.5,
        frame_counts=counts if media else None,
        features=features if media else None,
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, as a batch."""
    assert batch.features is not None
    assert batch.frame_counts is not None
    return Batch(
        corpus=batch.corpus,
        keys=batch.keys[rows],
        ids=batch.ids[rows],
        targets=batch.targets[rows],
        attend_next=batch.attend_next[rows],
        frame_counts=batch.frame_counts[rows],
        features=batch.features[rows],
    )


class Stream:
    """Endless updates whose batches follow from their number, as a mixture's do from its state."""

    def __init__(self, corpora: Sequence[str] = ("pages", "videos"), size: int = 1) -> None:
        self.corpora, self.number, self.size = tuple(corpora), 0, size

    def __next__(self) -> list[Batch]:
        at, self.number = self.number, self.number + 1
        return [make_batch(c, 4, at * len(self.corpora) + i) for i, c in enumerate(self.corpora)]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def resume(self, places: Sequence[Any]) -> None:
        self.number = places[0]["number"]
