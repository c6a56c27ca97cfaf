"""The one place that knows sizes: a model's configuration, and its parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from flamvid import config
from flamvid.errors import ConfigError
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.pretrained import TOML
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.transformers_encoder import FAMILIES
from flamvid.models.vision import VisionConfig, vision_of

__all__ = [
    "MixtureConfig",
    "ModelConfig",
    "PromptConfig",
    "TokenConfig",
    "about",
    "assemble",
    "preset_names",
    "read_model_config",
    "skeleton",
]


LM_STATES = ("frozen", "unfrozen", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """Names of the special tokens, all of which the LM's tokenizer must know or be given.

    bos: "" for none. added: those that the tokenizer is given, in the order of their ids. around:
    stands before and behind each media.
    """

    bos: str
    media: str
    end: str
    added: tuple[str, ...] = ()
    around: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How the model was trained to be asked; `{media}` and `{question}` are filled in."""

    caption: str = "{media}"
    question: str = "{media} Question: {question} Answer:"

    def __post_init__(self) -> None:
        for name, must in (("caption", ["{media}"]), ("question", ["{media}", "{question}"])):
            if missing := [word for word in must if word not in getattr(self, name)]:
                raise ConfigError(
                    f"prompt.{name} is {getattr(self, name)!r}; must contain {missing[0]}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """The data that the paper trained a model on: the weight of each corpus's loss.

    mixing: as of a recipe's `[run]`. A recipe has the corpora themselves, and this is what it
    doesn't say of their mixture: see datasets/mixtures.
    """

    weights: Mapping[str, float]
    mixing: str = "accumulate"

    def __post_init__(self) -> None:
        if self.mixing not in ("accumulate", "round-robin"):
            raise ConfigError(
                f"mixture.mixing is {self.mixing!r}; must be accumulate or round-robin"
            )
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or weight <= 0:
                raise ConfigError(f"mixture.weights.{name} is {weight!r}; must be above 0")

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        return f"{parts}; {self.mixing}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A whole model: the parts by name or size, and where its trained weights lie.

    format: whose layout the weights have (`flamvid.weights.load.FORMATS`). adapter: a file, or
    `hub:ORG/NAME/FILE`. frames: how many are looked at unless told otherwise; 0 for as many as it
    was trained on. contrastive: the file of the heads that search embeds with, if there is one.
    dtype: what it is loaded as unless told otherwise; cpu_dtype: on a CPU, if that is another.
    lm_config, vision_config: the frozen parts' architecture, by which their size is
    known before they are fetched. licence: of the trained weights. lm_state: "frozen", or in the
    paper's ablations "unfrozen" (trained on from what it was) or "scratch" (from fresh weights of
    lm_config). billions: the total that the paper states; 0 where it states none. A preset of the
    paper has no `lm` and no `adapter`: nobody released them. mixture: what the paper trained it on.
    """

    name: str
    lm: str
    adapter: str
    tokens: TokenConfig
    vision: VisionConfig
    resampler: ResamplerConfig
    xattn: XattnConfig
    frames: int = 0
    format: str = "flamvid"
    prompt: PromptConfig = field(default_factory=PromptConfig)
    licence: str = ""
    lm_state: str = "frozen"
    billions: float = 0.0
    dtype: str = "float32"
    cpu_dtype: str = ""
    contrastive: str = ""
    lm_config: Mapping[str, Any] = field(default_factory=dict)
    vision_config: Mapping[str, Any] = field(default_factory=dict)
    mixture: MixtureConfig | None = None

    def __post_init__(self) -> None:
        if self.lm_state not in LM_STATES:
            raise ConfigError(f"lm_state is {self.lm_state!r}; must be {', '.join(LM_STATES)}")
        if self.lm_state == "scratch" and not self.lm_config:
            raise ConfigError("lm_state scratch needs lm_config, the architecture to begin with")

    @property
    def tells_sizes(self) -> bool:
        """Whether the architecture of every frozen part is at hand."""
        kind, _, name = self.vision.encoder.partition(":")
        sees = kind not in FAMILIES or bool(self.vision_config) or Path(name).is_dir()
        return sees and bool(self.lm_config)


def preset_names() -> list[str]:
    """Names of the models that ship with flamvid."""
    files = resources.files("flamvid.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def read_model_config(name: str) -> ModelConfig:
    """The configuration of a preset by name, of a model TOML by path, or of a saved model."""
    path = Path(name)
    if name and (path / TOML).is_file():  # a folder that `save_pretrained` or `convert` wrote
        path = path / TOML
    elif path.suffix != ".toml":
        if name not in preset_names():
            loadable = (n for n in preset_names() if not n.startswith("flamingo-"))  # the paper's
            raise ConfigError(
                f"no model is called {name!r}; there are {', '.join(loadable)}, "
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
    if "prompt" in plain:
        plain["prompt"] = config.build(PromptConfig, plain["prompt"], f"{name}: prompt")
    if "mixture" in plain:
        plain["mixture"] = config.build(MixtureConfig, plain["mixture"], f"{name}: mixture")
    if plain["adapter"] and not plain["adapter"].startswith("hub:"):
        plain["adapter"] = str(Path(folder) / plain["adapter"])
    if plain.get("contrastive"):
        plain["contrastive"] = str(Path(folder) / plain["contrastive"])
    return config.build(ModelConfig, {"name": name, **plain, **built}, name)


def about(model: ModelConfig) -> dict[str, Any]:
    """What a saved model says of itself beside its sizes.

    Not `cpu_dtype`: a saved model has no int8 weights on the disk, and making them takes longer
    than it saves.
    """
    return {
        "name": model.name,
        "lm": model.lm,
        "licence": model.licence,
        "frames": model.frames,
        "tokens": asdict(model.tokens),
        "prompt": asdict(model.prompt),
        "vision": asdict(model.vision),
    }


def skeleton(model: ModelConfig) -> Flamingo:
    """The whole model on the meta device: every shape, no memory. Needs the architectures.

    Raises ConfigError where the architecture of a frozen part is not in the configuration.
    """
    if not model.tells_sizes:
        part = "vision_config" if model.lm_config else "lm_config"
        raise ConfigError(f"model {model.name} has no {part}; its sizes are known once loaded")
    from flamvid.models.hosts import lm_of

    with torch.device("meta"):
        lm = lm_of(model.lm_config)
        vision = vision_of(model.vision, model.vision_config)
        return assemble(vision, lm, model.resampler, model.xattn, model.lm_state)


def assemble(
    vision: VisionEncoder,
    lm: Any,
    resampler: ResamplerConfig,
    xattn: XattnConfig,
    lm_state: str = "frozen",
) -> Flamingo:
    """A Flamingo of these frozen parts, with fresh trainable ones (gates at 0)."""
    if vision.width != resampler.features:
        raise ConfigError(
            f"resampler.features is {resampler.features}, but the vision encoder gives "
            f"{vision.width}; they must agree"
        )
    return Flamingo(vision, PerceiverResampler(resampler), lm, xattn, lm_state)
