"""The contrastive objective of the paper's appendix B.1.3, over all processes of a run.

Legend: B pairs of this process, W processes, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from flamvid.errors import ConfigError

__all__ = ["ContrastiveLoss", "ContrastiveStage", "contrastive_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveStage:
    """A contrastive run; unless the recipe says otherwise, the paper's settings but for its size.

    encoder: a timm model that is trained beside a BERT, as in the paper; "" trains two heads on the
    frozen parts of the recipe's model. adaptive_clip: how long a unit's gradient may be beside its
    weights (Brock et al. 2021, arXiv 2102.06171), for NFNets; 0 for any. width: of the joint space.
    hidden, dropout, layer: see ContrastiveConfig. captions: of each sample at most, for heads.
    size: of pictures, in pixels, for a trained encoder; tokens: of a text at most, and bert_*: its
    encoder's sizes.
    """

    encoder: str = ""
    steps: int = 500
    batch: int = 512
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.0
    smoothing: float = 0.1
    adaptive_clip: float = 0.01
    width: int = 1376
    hidden: int = 0
    dropout: float = 0.0
    layer: int = 0
    captions: int = 8
    size: int = 288
    tokens: int = 32
    bert_layers: int = 12
    bert_width: int = 768
    bert_heads: int = 12
    save_every: int = 100

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "learning_rate", "width", "captions", "size", "tokens")
        for name in (*positive, "bert_layers", "bert_width", "bert_heads", "save_every"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"contrastive.{name} is {getattr(self, name)}; must be above 0")
        if self.bert_width % self.bert_heads:
            raise ConfigError(
                f"contrastive.bert_width is {self.bert_width}; must be a multiple of bert_heads"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"contrastive.smoothing is {self.smoothing}; must be in [0, 1)")


class ContrastiveLoss(nn.Module):
    """The mean loss of a module whose `forward` gives vectors of videos and texts, and the heat."""

    def __init__(self, module: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.module, self.smoothing = module, smoothing

    def forward(self, *inputs: Tensor) -> Tensor:
        """Of a batch of the module's inputs."""
        videos_BE, texts_BE, heat = self.module(*inputs)
        return contrastive_loss(videos_BE, texts_BE, heat, self.smoothing)


def contrastive_loss(videos_BE: Tensor, texts_BE: Tensor, heat: Tensor, smoothing: float) -> Tensor:
    """Mean over both directions of the cross-entropy of finding the other half of a pair.

    Vectors of length 1; heat: the inverse temperature. Every process meets the pairs of all others
    as negatives: the mean of the processes' losses, and of their gradients, is what one process
    would get for all pairs at once.
    """
    all_videos, all_texts = _gathered(videos_BE), _gathered(texts_BE)  # W*B x E
    B = videos_BE.shape[0]
    own = torch.arange(B, device=videos_BE.device) + B * _rank()
    to_text = F.cross_entropy(heat * videos_BE @ all_texts.T, own, label_smoothing=smoothing)
    to_video = F.cross_entropy(heat * texts_BE @ all_videos.T, own, label_smoothing=smoothing)
    return 0.5 * (to_text + to_video)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """All processes' rows; a row's gradient is the sum of what all processes have for it."""

    @staticmethod
    def forward(ctx: object, rows_BE: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_BE) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        (grad,) = grads
        grad = grad.contiguous()
        distributed.all_reduce(grad)
        return grad.chunk(distributed.get_world_size())[distributed.get_rank()]


def _gathered(rows_BE: Tensor) -> Tensor:
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows_BE
    out: Tensor = _Gather.apply(rows_BE)
    return out
