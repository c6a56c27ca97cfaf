"""The one place that knows sizes: a model's configuration, and its parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from flamvid import config
from flamvid.errors import ConfigError
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.vision import ClipEncoder, TimmEncoder, VisionConfig

__all__ = ["ModelConfig", "TokenConfig", "assemble", "preset_names", "read_model_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Names of the special tokens, all of which the LM's tokenizer must know."""

    bos: str
    media: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model: the parts by name or size, and the file with the trained weights.

    frames: how many are looked at unless told otherwise; 0 for as many as it was trained on.
    cpu_dtype: what it is loaded as on a CPU unless told otherwise.
    """

    name: str
    lm: str
    adapter: str
    tokens: TokenConfig
    vision: VisionConfig
    resampler: ResamplerConfig
    xattn: XattnConfig
    frames: int = 0
    cpu_dtype: str = "float32"


def preset_names() -> list[str]:
    """Names of the models that ship with flamvid."""
    files = resources.files("flamvid.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_model_config(name: str) -> ModelConfig:
    """The configuration of a preset by name, or of a model TOML by path."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in preset_names():
            raise ConfigError(
                f"no model is called {name!r}; there are {', '.join(preset_names())}, "
                "or give the path of a model's .toml"
            )
        path = Path(str(resources.files("flamvid.presets") / f"{name}.toml"))
    return model_config(config.read_toml(path), path.stem, str(path.parent))


def model_config(table: Mapping[str, Any], name: str, folder: str) -> ModelConfig:
    """A configuration from its table; a relative adapter path is taken from `folder`."""
    parts: dict[str, type[Any]] = {
        "tokens": TokenConfig,
        "vision": VisionConfig,
        "resampler": ResamplerConfig,
        "xattn": XattnConfig,
    }
    missing = [key for key in (*parts, "lm", "adapter") if key not in table]
    if missing:
        raise ConfigError(f"model {name} lacks {', '.join(missing)}; a model needs all its parts")
    built = {key: config.build(cls, table[key], f"{name}: {key}") for key, cls in parts.items()}
    plain = {key: value for key, value in table.items() if key not in parts}
    plain["adapter"] = str(Path(folder) / plain["adapter"])
    return config.build(ModelConfig, {"name": name, **plain, **built}, name)


def assemble(
    vision: TimmEncoder | ClipEncoder, lm: Any, resampler: ResamplerConfig, xattn: XattnConfig
) -> Flamingo:
    """A Flamingo of these frozen parts, with fresh trainable ones (gates at 0)."""
    if vision.width != resampler.features:
        raise ConfigError(
            f"resampler.features is {resampler.features}, but the vision encoder gives "
            f"{vision.width}; they must agree"
        )
    return Flamingo(vision, PerceiverResampler(resampler), lm, xattn)
