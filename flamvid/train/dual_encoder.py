"""The paper's contrastive pretraining of a vision encoder, beside a BERT, from scratch (B.1.3).

Legend: X pictures, B samples, S tokens.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.data.shards import Sample, read_shard
from flamvid.errors import SourceError
from flamvid.models.contrastive import ContrastiveConfig, DualHead, mean_states
from flamvid.models.vision import TimmEncoder
from flamvid.train.contrastive import ContrastiveStage
from flamvid.video.transform import FrameTransform

__all__ = ["DualEncoder", "PicturePairs", "build_encoder"]

_log = logging.getLogger("flamvid.train")


class DualEncoder(nn.Module):
    """A timm encoder and a BERT, both mean-pooled, projected into one space."""

    def __init__(self, vision: TimmEncoder, bert: nn.Module, head: DualHead) -> None:
        super().__init__()
        self.vision, self.bert, self.head = vision, bert, head

    def forward(
        self, pictures_X3HW: Tensor, counts_B: Tensor, ids_BS: Tensor, real_BS: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of length 1 of videos and texts, both [B,E], and the heat."""
        vectors_XE = self.head.frames(self.vision(pictures_X3HW).mean(1))
        videos = torch.stack([part.mean(0) for part in vectors_XE.split(counts_B.tolist())])
        states_BSD = self.bert(input_ids=ids_BS, attention_mask=real_BS).last_hidden_state
        texts = self.head.texts(mean_states(states_BSD, real_BS))
        return F.normalize(videos, dim=-1), texts, self.head.heat()


def build_encoder(stage: ContrastiveStage, vocabulary: int) -> DualEncoder:
    """All of it as initialised; `encoder` is `timm:NAME`."""
    from transformers import BertConfig, BertModel

    vision = TimmEncoder(stage.encoder.removeprefix("timm:"), classifier=False)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=stage.bert_width,
        num_hidden_layers=stage.bert_layers,
        num_attention_heads=stage.bert_heads,
        intermediate_size=4 * stage.bert_width,
        max_position_embeddings=stage.tokens,
    )
    sizes = ContrastiveConfig(
        features=vision.width,
        states=stage.bert_width,
        width=stage.width,
        hidden=stage.hidden,
        dropout=stage.dropout,
    )
    head = DualHead(sizes)
    head.share.requires_grad_(False)  # of a verdict, which an encoder from scratch has none of
    head.log_sharpness.requires_grad_(False)
    whole = DualEncoder(vision, BertModel(config, add_pooling_layer=False), head)
    for parameter in whole.parameters():  # snapshots want them so
        parameter.data = parameter.data.contiguous()
    return whole


def _left_out(error: SourceError) -> None:
    _log.warning("left out: %s", error)


class PicturePairs:
    """Samples of shards, read into memory as they are stored and transformed when drawn.

    encode: a caption to token ids. Flips are the same for all frames of a video.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        transform: FrameTransform,
        encode: Callable[[str], list[int]],
        tokens: int,
    ) -> None:
        self.samples: list[Sample] = [s for shard in shards for s in read_shard(shard, _left_out)]
        self.transform, self.encode, self.tokens = transform, encode, tokens

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: Sequence[int], rngs: Sequence[random.Random]) -> tuple[Tensor, ...]:
        """Pictures [X,3,H,W], how many each sample has [B], token ids and which are real [B,S]."""
        chosen = [self.samples[row] for row in rows]
        pictures = []
        for sample, rng in zip(chosen, rngs, strict=True):
            flip = rng.random() < 0.5
            for picture in sample.pictures:
                pictures.append(self.transform(picture[None].flip(-1) if flip else picture[None]))
        said = [rng.choice(s.captions) for s, rng in zip(chosen, rngs, strict=True)]
        texts = [self.encode(f" {text}")[: self.tokens] for text in said]
        ids_BS = torch.zeros(len(rows), max(map(len, texts)), dtype=torch.long)
        real_BS = torch.zeros_like(ids_BS)
        for row, text in enumerate(texts):
            ids_BS[row, : len(text)] = torch.tensor(text)
            real_BS[row, : len(text)] = 1
        return torch.cat(pictures), torch.tensor([len(s.pictures) for s in chosen]), ids_BS, real_BS
