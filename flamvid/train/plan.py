"""A general recipe as TOML: a model, corpora, an optimizer and a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flamvid import config
from flamvid.data.corpus import CorpusConfig
from flamvid.errors import ConfigError
from flamvid.train.changes import read_changed
from flamvid.train.mixture import mix_as_the_model
from flamvid.train.optimizer import OptimConfig
from flamvid.train.parallel import ENGINES

__all__ = ["ModelPart", "Plan", "RunConfig", "read_plan"]

MIXING = ("accumulate", "round-robin")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """Which model, and what of it is trained.

    start: "fresh" trains its new parts from nothing, "trained" from its adapter on. vision:
    "frozen" or "trained". size: pixels of a frame's side, 0 for the model's own. lora: rank of
    low-rank changes to the language model, 0 for none.
    """

    name: str = "flamvid-base"
    start: str = "fresh"
    vision: str = "frozen"
    size: int = 0
    lora: int = 0

    def __post_init__(self) -> None:
        for name, words in (("start", ("fresh", "trained")), ("vision", ("frozen", "trained"))):
            if getattr(self, name) not in words:
                raise ConfigError(f"model.{name} is {getattr(self, name)!r}; must be {words}")
        for name in ("size", "lora"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long and where, and what is written on the way.

    mixing: "accumulate" sums the gradients of all corpora in an update, "round-robin" updates on
    one after the other (the paper's ablation). accumulate: so many batches of each count as one.
    workers: processes that read data ahead, for each process that trains. engine: "ddp" or "fsdp",
    for several processes. together: so many tokens go through the model at one time, whatever the
    batch; 0 leaves it to the device. checkpointing: compute layers again, keep no activations.
    cache: a file for features of frozen vision, relative to the run's folder, "" for none; it stops
    to grow at `cache_gb`. wandb: a project's name, "" for none.
    """

    steps: int = 500_000
    seed: int = 0
    workers: int = 0
    mixing: str = "accumulate"
    accumulate: int = 1
    engine: str = "ddp"
    device: str = "auto"
    precision: str = "auto"
    together: int = 0
    checkpointing: bool = False
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    validate_every: int = 500
    validation_batches: int = 8
    cache: str = "../features.sqlite"
    cache_gb: float = 20.0
    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self) -> None:
        words = {
            "mixing": MIXING,
            "engine": ENGINES,
            "precision": ("auto", "float32", "bfloat16"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"run.{name} is {getattr(self, name)!r}; must be one of {', '.join(known)}"
                )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"run.device is {self.device!r}; must be auto, cpu, cuda or cuda:N")
        if not 0 <= self.seed < 2**53:  # as JSON's numbers are
            raise ConfigError(f"run.seed is {self.seed}; must be at least 0 and below 2**53")
        for name in ("workers", "together"):
            if getattr(self, name) < 0:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; must be at least 0")
        for name in (
            *("steps", "accumulate", "save_every", "keep", "log_every", "validate_every"),
            *("validation_batches", "cache_gb"),
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run. Paths of corpora are relative to `root`."""

    name: str
    root: Path
    corpora: tuple[CorpusConfig, ...]
    validation: tuple[CorpusConfig, ...] = ()
    model: ModelPart = field(default_factory=ModelPart)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for corpus in (*self.corpora, *self.validation):
            if self.model.vision == "trained" and corpus.kind in ("features", "store"):
                raise ConfigError(
                    f"corpus {corpus.name} holds features, but model.vision is 'trained' and needs "
                    "pictures; give it videos, frames or images"
                )

    def table(self) -> dict[str, Any]:
        """As the TOML that it could have been read from, every value spelled out."""
        parts = {name: asdict(getattr(self, name)) for name in ("model", "optim", "run")}
        corpora = {"corpus": [asdict(c) for c in self.corpora]}
        return parts | corpora | {"validation": [asdict(c) for c in self.validation]}

    def fine_tuned(self) -> Plan:
        """The paper's fine-tuning (appendix B.2): trained parts to begin with, vision learns too.

        What the recipe sets itself stays: 480 pixels and a rate of 1e-5 are for what it doesn't.
        """
        model = replace(self.model, start="trained", vision="trained", size=self.model.size or 480)

        def enlarged(corpora: tuple[CorpusConfig, ...]) -> tuple[CorpusConfig, ...]:
            return tuple(replace(c, size=max(c.size, model.size)) for c in corpora)

        default = self.optim.learning_rate == OptimConfig().learning_rate
        optim = replace(self.optim, learning_rate=1e-5) if default else self.optim
        corpora, validation = enlarged(self.corpora), enlarged(self.validation)
        return replace(self, model=model, optim=optim, corpora=corpora, validation=validation)


def read_plan(path: Path, changes: Sequence[str] = (), root: Path | None = None) -> Plan:
    """Read and check a recipe, with `changes` made to it (`read_changed`).

    What it leaves to the model's mixture is filled in (`mix_as_the_model`).
    Raises ConfigError for a wrong key or value, which names the near one.
    """
    table = read_changed(path, changes)
    parts: dict[str, type[Any]] = {"model": ModelPart, "optim": OptimConfig, "run": RunConfig}
    lists = {"corpus": "corpora", "validation": "validation"}
    for key in parts:
        if not isinstance(table.setdefault(key, {}), dict):
            raise ConfigError(f"{path}: {key} is {table[key]!r}; must be a table, [{key}]")
    for key in lists:
        tables = table.setdefault(key, [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(f"{path}: {key} must be tables, [[{key}]]")
    if not table["corpus"]:
        raise ConfigError(f"{path} has no [[corpus]] table; a recipe must say what to train on")
    model = config.build(ModelPart, table["model"], f"{path}: model")
    mix_as_the_model(table, model.name, path)
    built: dict[str, Any] = {
        key: config.build(cls, table.pop(key), f"{path}: {key}") for key, cls in parts.items()
    }
    for key, field_ in lists.items():
        tables = table.pop(key)
        built[field_] = tuple(
            config.build(CorpusConfig, t, f"{path}: {key} {t.get('name', at)}")
            for at, t in enumerate(tables)
        )
    names = [c.name for c in built["corpora"]]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ConfigError(f"{path}: two corpora are called {twice.pop()!r}; give each a name")
    config.refuse(table, (*parts, "corpus", "validation"), str(path))
    return Plan(name=path.stem, root=root or path.parent, **built)
