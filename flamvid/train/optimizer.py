"""AdamW in the paper's groups, and its learning rate (Flamingo, appendix B.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flamvid.errors import ConfigError

__all__ = ["OptimConfig", "make_optimizer", "rate", "set_rates"]

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The paper's values, but for the betas, which it does not state.

    warmup: updates in which the rate rises from 0. lm_share: the share of the rate that an
    unfrozen language model has. Rates of 0 are as the rest. decay is 0 for the resampler always.
    """

    learning_rate: float = 1e-4
    resampler_learning_rate: float = 0.0
    gate_learning_rate: float = 0.0
    lm_share: float = 0.1
    warmup: int = 5000
    schedule: str = "constant"
    weight_decay: float = 0.1
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"optim.schedule is {self.schedule!r}; must be one of {', '.join(SCHEDULES)}"
            )
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; must be above 0")
        for name in ("resampler_learning_rate", "gate_learning_rate", "lm_share", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; must be at least 0")
        if self.warmup < 0:
            raise ConfigError(f"optim.warmup is {self.warmup}; must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; must be in [0, 1)")


def make_optimizer(trained: Iterable[tuple[str, Tensor]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW of the parameters that `Flamingo.trained` names.

    No decay for the resampler, norms, gates and rows of tokens; gates at a rate of their own.
    """
    groups: dict[str, list[Tensor]] = {"resampler": [], "gates": [], "matrices": [], "vectors": []}
    for name, parameter in trained:
        part, shape = name.partition(".")[0], "matrices" if parameter.ndim > 1 else "vectors"
        if part in ("resampler", "tokens"):
            kind = part
        elif name.endswith("gate"):
            kind = "gates"
        elif part == "lm" and "lora_" not in name:  # only in the ablations that train it too
            kind = f"lm {shape}"
        else:
            kind = shape
        groups.setdefault(kind, []).append(parameter)
    peak = config.learning_rate
    rates = {
        "resampler": config.resampler_learning_rate or peak,
        "gates": config.gate_learning_rate or peak,
        "lm matrices": config.lm_share * peak,
        "lm vectors": config.lm_share * peak,
    }
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": rates.get(kind, peak),
                "weight_decay": config.weight_decay if kind.endswith("matrices") else 0.0,
            }
            for kind, parameters in groups.items()
        ],
        lr=peak,
        betas=(config.beta1, config.beta2),
    )


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at a step.

    A linear warm-up, then constant or a cosine to 0. Linear: up, and then down in a line that
    began at the first step.
    """
    if schedule == "linear":
        return min((step + 1) / max(warmup, 1), 1 - step / steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give every group this share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
