"""A training recipe: what to train on, and how, in one TOML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flamvid import config
from flamvid.errors import ConfigError
from flamvid.train.changes import read_changed
from flamvid.train.contrastive import ContrastiveStage
from flamvid.train.optimizer import OptimConfig

__all__ = ["CaptionStage", "DataConfig", "Recipe", "WordStage", "read_recipe"]

_CONTRASTIVE = ("data", "contrastive")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Shards by glob, relative to `root`. `clips` are drawn more often than `stills`.

    root: relative to the recipe; `flamvid train --data` replaces it. plain: captions in lower case
    without a full stop, or corpora that disagree on this teach two ways to write.
    """

    clips: tuple[str, ...]
    validation: tuple[str, ...]
    stills: tuple[str, ...] = ()
    stills_share: float = 0.25
    plain: bool = False
    root: str = "."

    def __post_init__(self) -> None:
        for name in ("clips", "validation", "stills"):
            globs = getattr(self, name)
            if not isinstance(globs, tuple):
                raise ConfigError(f"data.{name} is {globs!r}; must be a list of globs")
        if not 0 <= self.stills_share < 1:
            raise ConfigError(f"data.stills_share is {self.stills_share}; must be in [0, 1)")
        if not self.clips or not self.validation:
            raise ConfigError("data.clips and data.validation must name shards")


@dataclass(frozen=True, slots=True, kw_only=True)
class WordStage:
    """First the resampler alone: its mean latent predicts the words of the captions."""

    steps: int = 1500
    batch: int = 64
    words: int = 1500
    learning_rate: float = 1e-3
    feature_dropout: float = 0.1

    def __post_init__(self) -> None:
        _share("words", self, ("feature_dropout",))
        _positive("words", self, ("batch", "words", "learning_rate"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionStage:
    """Then everything: next-token loss on captions. `batch` media, `captions` of each.

    patch_dropout: with it above 0, each update sees so much less of every frame, and of every video
    a random half of its frames or more. label_*: see `LabelNoise`, for models that say labels.
    """

    steps: int = 900
    batch: int = 32
    captions: int = 2
    schedule: str = "cosine"
    warmup: int = 50
    learning_rate: float = 1e-3
    gate_learning_rate: float = 3e-2
    resampler_learning_rate: float = 2e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    max_tokens: int = 24
    feature_dropout: float = 0.1
    patch_dropout: float = 0.5
    consensus: float = 1.0
    label_drop: float = 0.2
    label_drop_all: float = 0.15
    label_swap: float = 0.3
    validate_every: int = 100
    save_every: int = 50

    @property
    def optim(self) -> OptimConfig:
        """The same as the optimizer wants it."""
        return OptimConfig(
            learning_rate=self.learning_rate,
            resampler_learning_rate=self.resampler_learning_rate,
            gate_learning_rate=self.gate_learning_rate,
            warmup=self.warmup,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            clip=self.clip,
            beta2=0.98,
        )

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"captions.schedule is {self.schedule!r}; must be cosine or constant")
        _share("captions", self, ("feature_dropout", "patch_dropout"))
        for name in ("label_drop", "label_drop_all", "label_swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"captions.{name} is {getattr(self, name)}; must be in [0, 1]")
        _positive(
            "captions",
            self,
            (
                *("steps", "batch", "captions", "learning_rate", "clip", "max_tokens"),
                *("validate_every", "save_every"),
            ),
        )
        _ = self.optim  # refuses what is wrong now, not after the words


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole run. `model` is a preset, or the path of a model's TOML, from here or the recipe.

    contrastive: instead of words and captions; then `model` is whose frozen parts the heads stand
    on, or whose tokenizer is used. precision: "bfloat16" multiplies matrices in bfloat16, "auto"
    does so where the CPU is fast at it; weights, activations and the optimizer are float32 always.
    """

    name: str
    folder: Path
    data: DataConfig
    words: WordStage = field(default_factory=WordStage)
    captions: CaptionStage = field(default_factory=CaptionStage)
    contrastive: ContrastiveStage | None = None
    model: str = "flamvid-base"
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; must be auto, float32 or bfloat16")
        if not 0 <= self.seed < 2**53:
            raise ConfigError(f"seed is {self.seed}; must be at least 0 and below 2**53")

    def path(self, relative: str) -> Path:
        """A path of the recipe, taken from the recipe's folder."""
        return self.folder / relative

    @property
    def root(self) -> Path:
        """Where its shards are."""
        return self.path(self.data.root)

    def table(self) -> dict[str, Any]:
        """As the TOML that it could have been read from, every value spelled out."""
        names = ("data", "words", "captions") if self.contrastive is None else _CONTRASTIVE
        about = {name: getattr(self, name) for name in ("model", "seed", "precision")}
        table = about | {name: asdict(getattr(self, name)) for name in names}
        table["data"]["root"] = str(self.root.resolve())
        return table


def read_recipe(path: Path, changes: Sequence[str] = (), root: Path | None = None) -> Recipe:
    """Read and check a recipe, with `changes` made to it (`read_changed`).

    root: where its shards are, if not where it says. Raises ConfigError for a wrong key or value,
    which names the near one.
    """
    table = read_changed(path, changes)
    here = path.parent / str(table.get("model", ""))
    if here.suffix == ".toml" and here.is_file():  # a model's TOML beside the recipe
        table["model"] = str(here)
    parts: dict[str, type[Any]] = {"data": DataConfig}
    if "contrastive" in table:
        parts["contrastive"] = ContrastiveStage
        table.setdefault("precision", "float32")
    else:
        parts |= {"words": WordStage, "captions": CaptionStage}
    if "data" not in table:
        raise ConfigError(f"{path} has no [data] table; a recipe must say what to train on")
    if other := sorted(({*_CONTRASTIVE, "words", "captions"} - parts.keys()) & table.keys()):
        raise ConfigError(f"{path} has a table [contrastive], and so can't have [{other[0]}]")
    for key in parts:
        if not isinstance(table.get(key, {}), dict):
            raise ConfigError(f"{path}: {key} is {table[key]!r}; must be a table, [{key}]")
    built = {
        key: config.build(cls, table.pop(key, {}), f"{path}: {key}") for key, cls in parts.items()
    }
    if root is not None:
        built["data"] = replace(built["data"], root=str(root.resolve()))
    known = ("model", "seed", "precision", *parts)
    config.refuse((key for key in table if key not in known), known, str(path))
    place = {"name": path.stem, "folder": path.parent}
    return config.build(Recipe, {**table, **place, **built}, str(path))


def _share(where: str, stage: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(stage, name) < 1:
            raise ConfigError(f"{where}.{name} is {getattr(stage, name)}; must be in [0, 1)")


def _positive(where: str, stage: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(stage, name) <= 0:
            raise ConfigError(f"{where}.{name} is {getattr(stage, name)}; must be above 0")
