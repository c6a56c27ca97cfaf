"""What all vision encoders are: frozen, pictures in, features out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flamvid.errors import WeightsError

__all__ = ["Clip", "Pictures", "VisionEncoder"]


@dataclass(frozen=True, slots=True)
class Clip:
    """What a video encoder sees at once: `frames`, `fps` of them a second; `steps` come out."""

    frames: int
    fps: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """How an encoder's authors prepare what it sees; fields as of `VisionConfig`."""

    size: int
    shorter: int = 0
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    resize: str = "crop"
    interpolation: str = "bilinear"
    antialias: bool = True


class VisionEncoder(nn.Module):
    """Pictures [X,3,H,W] to features [X,N,F], each by itself; with a `clip`, those of one media.

    model: the module of the library that has it, whose tensors are what is saved. width: F.
    clip: None where each picture is encoded by itself. left_out: parts of the published model, by
    the beginnings of their tensors' names, that features don't need.
    """

    model: Any
    width: int
    clip: Clip | None = None
    left_out: tuple[str, ...] = ()

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What a model's [vision] says of it, once its weights are saved beside."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` (its library's names) in; missing or unexpected ones are an error."""
        result = self.model.load_state_dict(dict(tensors), strict=False)
        self._check(result.missing_keys, result.unexpected_keys)

    def _check(self, missing: Sequence[str], extra: Sequence[str]) -> None:
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        extra = [name for name in extra if not name.startswith(self.left_out)]
        if missing or extra:
            raise WeightsError(
                f"vision weights do not fit: missing {missing[:3]}, unexpected {extra[:3]}"
            )
