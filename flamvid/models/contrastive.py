"""Videos and texts in one space: the dual encoder of the paper's appendix B.1.3.

Features of patches and states of tokens are averaged and projected; how alike a video and a text
are is the product of the two vectors, set to length 1. A frame has a vector of its own, and a part
of a video the mean of its frames': which parts will be asked for need not be known beforehand.

An encoder that classifies knows more words than a few thousand captions teach. Its verdict joins
as text: the vectors of the names of its classes, weighed by their probabilities (ConSE, Norouzi et
al. 2013, arXiv 1312.5650).

Legend: B texts, T frames, N patches, F feature width, S tokens, D width of a text's states,
C classes, E joint width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.errors import ConfigError

__all__ = ["ContrastiveConfig", "DualHead", "Embedder", "mean_states", "mean_vector"]

_HOTTEST = 100.0  # bound of the inverse temperature, as in CLIP (Radford et al. 2021, section 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """Sizes of the two projections; 1376 is the paper's joint width.

    hidden: of a layer beside each straight projection; 0 for none, as in the paper. layer: texts
    are read by so many layers of the frozen language model. classes: of the vision encoder's
    classifier, where its verdict joins; else 0.
    """

    features: int
    states: int
    width: int = 1376
    hidden: int = 0
    dropout: float = 0.0
    layer: int = 0
    classes: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "states", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"contrastive.{name} is {getattr(self, name)}; must be above 0")
        for name in ("hidden", "layer", "classes"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"contrastive.{name} is {getattr(self, name)}; must not be below 0"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"contrastive.dropout is {self.dropout}; must be in [0, 1)")


class Projection(nn.Module):
    """A linear map of inputs brought to one scale; with `hidden`, a layer beside it."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.drop = nn.Dropout(dropout)
        self.straight = nn.Linear(inputs, outputs)
        self.bent = _bent(inputs, hidden, outputs, dropout) if hidden else None

    def fit(self, inputs_XI: Tensor) -> None:
        """Take the scale of each input from what the projection is to be trained on."""
        std_I, mean_I = torch.std_mean(inputs_XI.float(), 0)
        self.mean.copy_(mean_I)
        self.scale.copy_(std_I + 1e-3)  # an input that never varies must not become a loud one

    def forward(self, inputs_XI: Tensor) -> Tensor:
        """[X,E], of any length."""
        x = self.drop((inputs_XI - self.mean) / self.scale)
        out: Tensor = self.straight(x)
        return out if self.bent is None else out + self.bent(x)


def _bent(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Module:
    last = nn.Linear(hidden, outputs, bias=False)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), last)


class DualHead(nn.Module):
    """The two projections, and the inverse temperature that is learnt with them.

    class_states: mean states [C,D] of the names of the encoder's classes, if it has any.
    """

    class_states: Tensor

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.hidden, config.width, config.dropout
        self.vision = Projection(config.features, *shape)
        self.text = Projection(config.states, *shape)
        self.log_heat = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("class_states", torch.zeros(config.classes, config.states))
        # Of the verdict: its share in a frame's vector, and how sharp the classifier is taken.
        self.share = nn.Parameter(torch.ones(()))
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def classes(self) -> Tensor:
        """What the names of classes add, [C,E]: their vectors, without what all share.

        No gradient flows through it: the text side learns from texts.
        """
        with torch.no_grad():
            vectors_CE: Tensor = self.text(self.class_states)
        return vectors_CE - vectors_CE.mean(0)

    def frames(
        self, pooled_TF: Tensor, logits_TC: Tensor | None = None, classes_CE: Tensor | None = None
    ) -> Tensor:
        """A vector of any length per frame, [T,E].

        pooled_TF: mean features of each frame. logits_TC, classes_CE: the encoder's verdict and
        `classes()`, both or neither.
        """
        vectors_TE: Tensor = self.vision(pooled_TF)
        if logits_TC is None or classes_CE is None:
            return vectors_TE
        sure_TC = (logits_TC * self.log_sharpness.exp()).softmax(-1)
        return vectors_TE + self.share * (sure_TC @ classes_CE)

    def texts(self, states_BD: Tensor) -> Tensor:
        """Vectors of length 1, [B,E], of the mean states of texts."""
        return F.normalize(self.text(states_BD), dim=-1)

    def heat(self) -> Tensor:
        """The inverse temperature."""
        return self.log_heat.exp().clamp_max(_HOTTEST)


def mean_vector(vectors_TE: Tensor) -> Tensor:
    """The vector of length 1 of a part of a video, [E], from those of its frames."""
    return F.normalize(vectors_TE.float().mean(0), dim=-1)


def mean_states(states_BSD: Tensor, real_BS: Tensor) -> Tensor:
    """The mean over the tokens that are no padding, [B,D]."""
    weight_BS1 = real_BS.to(states_BSD.dtype)[..., None]
    return (states_BSD * weight_BS1).sum(1) / weight_BS1.sum(1).clamp_min(1)


class Embedder:
    """What search needs of a model. Vectors can be compared where `name` is the same.

    classify: mean features [T,F] to logits [T,C]. states: texts to their mean states [B,D].
    """

    def __init__(
        self,
        name: str,
        head: DualHead,
        states: Callable[[Sequence[str]], Tensor],
        classify: Callable[[Tensor], Tensor],
    ) -> None:
        self.name, self.width = name, head.config.width
        self._head, self._states, self._classify = head.eval(), states, classify
        self._classes_CE = head.classes() if head.config.classes else None

    @torch.inference_mode()
    def frames(self, features_TNF: Tensor) -> Tensor:
        """A vector per frame, float32 [T,E]; `mean_vector` makes one of a part's."""
        pooled_TF = features_TNF.float().mean(1)
        logits_TC = None if self._classes_CE is None else self._classify(pooled_TF)
        return self._head.frames(pooled_TF, logits_TC, self._classes_CE)

    @torch.inference_mode()
    def text(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1, float32 [B,E]."""
        return self._head.texts(self._states(texts))
