"""Tell when what is seen matches a description.

Legend: A alerts, T frames, N patches, F feature width, E joint width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.models.contrastive import Embedder

__all__ = ["Alarm", "Alert"]

_CALM = 0.9  # of the threshold; below it an alert may be raised again


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Tell when the cosine of `text` and what is seen reaches `threshold`: once, until it calms."""

    text: str
    threshold: float = 0.25

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("the text of an alert is empty; describe what to look for")
        if not 0 < self.threshold < 1:
            raise InputError(f"the threshold of an alert is {self.threshold:g}; must be in (0, 1)")


class Alarm:
    """Watches for all alerts at once, in a window of the last `frames`: the mean of their vectors.

    An alert is raised when its text reaches its threshold, and again only after it fell a tenth
    below that.
    """

    def __init__(self, alerts: Sequence[Alert], embedder: Embedder, frames: int) -> None:
        self._alerts, self._embedder = list(alerts), embedder
        self._texts_AE = embedder.text([alert.text for alert in alerts]).float()
        self._vectors: deque[Tensor] = deque(maxlen=frames)
        self._raised = [False] * len(self._alerts)

    def look(self, features_1NF: Tensor) -> list[tuple[str, float]]:
        """The texts of the alerts that one more frame raises, and how alike the window is."""
        self._vectors.append(self._embedder.frames(features_1NF)[0].float())
        window_E = F.normalize(torch.stack(list(self._vectors)).mean(0), dim=-1)
        out = []
        for at, score in enumerate((self._texts_AE @ window_E).tolist()):
            alert = self._alerts[at]
            if score >= alert.threshold and not self._raised[at]:
                out.append((alert.text, score))
                self._raised[at] = True
            elif score < _CALM * alert.threshold:
                self._raised[at] = False
        return out
