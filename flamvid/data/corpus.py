"""A corpus of a recipe: what it is, where it lies, and the paper's settings as its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flamvid import config
from flamvid.errors import ConfigError

__all__ = ["KINDS", "SPLITS", "CorpusConfig", "read_corpora"]

SPLITS = {"corpus": "train", "validation": "validation"}

KINDS = ("videos", "frames", "images", "interleaved", "text", "manifest", "features", "store")

_TOKENS = {"interleaved": 256, "text": 2048, "images": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """One `[[corpus]]` table of a recipe (Flamingo, section 2.4 and appendices A.3 and B.1).

    kind: "videos", "frames" and "images" are tar shards of pairs; "interleaved" of documents, or
    their JSONL or Parquet files; "text" plain texts; "manifest" CSV, TSV, JSONL, Parquet or a
    corpus's annotation file; "features" cached features; "store" a feature store.
    sources: globs, relative to the recipe's root, or addresses (http, https, s3, ...).
    weight: lambda of its loss. batch: samples of an update, of all processes together.
    max_tokens: 0 is the paper's: 256 of a document, 64 of an image's pair, 32 of a video's and of
    features, 2048 of text. media: images of a document that are kept, the first of its window.
    frames, fps: of a clip, from a random place in it. size: pixels of a side. resize: "pad" keeps
    the aspect and fills with the mean colour `fill`; "squash" and "crop" do not.
    flip, jitter: chance of a mirrored clip; strength of changes to its brightness, contrast,
    saturation and (a quarter of it) hue; the same for all its frames. 0 for neither.
    leading_space: chance of a space in front of a pair's text. next: chance that a page's text
    looks at the next image rather than the previous.
    shuffle, lanes: see `Order`. max_bad: samples that may be unreadable, in all processes together,
    before the run ends.
    media_root: folder or address that a manifest's media are in. pattern: how they are called
    there, with the columns in braces; without a suffix, in whatever format. split: which part of an
    annotation file.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    weight: float = 1.0
    batch: int = 8
    max_tokens: int = 0
    media: int = 5
    frames: int = 8
    fps: float = 1.0
    size: int = 320
    resize: str = "pad"
    fill: tuple[float, float, float] = (0.481, 0.458, 0.408)
    flip: float = 0.5
    jitter: float = 0.4
    leading_space: float = 0.5
    next: float = 0.5
    shuffle: int = 10_000
    lanes: int = 8
    max_bad: int = 1000
    media_root: str = ""
    pattern: str = ""
    split: str = ""

    def __post_init__(self) -> None:
        where = f"corpus {self.name}"
        for name, known in (("kind", KINDS), ("resize", ("pad", "squash", "crop"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{where}: {name} is {getattr(self, name)!r}; must be one of {', '.join(known)}"
                )
        sources = self.sources
        if not isinstance(sources, tuple) or not all(isinstance(s, str) and s for s in sources):
            raise ConfigError(f"{where}: sources is {sources!r}; must be a list of globs")
        if not sources:
            raise ConfigError(f"{where}: sources is empty; name at least one file")
        for name in ("weight", "batch", "media", "frames", "fps", "size", "shuffle", "lanes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; must be above 0")
        for name in ("flip", "jitter", "leading_space", "next"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; must be in [0, 1]")
        for name in ("max_tokens", "max_bad"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; must not be negative")
        if self.max_tokens in (1, 2):
            raise ConfigError(f"{where}: max_tokens is {self.max_tokens}; must be 3 or more")
        fill = self.fill
        if len(fill) != 3 or not all(0 <= x <= 1 for x in fill):
            raise ConfigError(f"{where}: fill is {fill!r}; must be three numbers in [0, 1]")

    def tokens(self, picture: bool) -> int:
        """The most tokens of a row; picture: whether it is a pair of a picture, not of a clip."""
        return self.max_tokens or _TOKENS.get(self.kind, 64 if picture else 32)


def read_corpora(path: Path) -> dict[str, tuple[CorpusConfig, ...]]:
    """The `[[corpus]]` and `[[validation]]` tables of a recipe, by "train" and "validation".

    What else a recipe says is for training. Raises ConfigError for a wrong key or value.
    """
    table = config.read_toml(path)
    found: dict[str, tuple[CorpusConfig, ...]] = {}
    for key, split in SPLITS.items():
        tables = table.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(f"{path}: {key} must be tables, [[{key}]]")
        found[split] = tuple(
            config.build(CorpusConfig, t, f"{path}: {key} {t.get('name', at)}")
            for at, t in enumerate(tables)
        )
        names = [corpus.name for corpus in found[split]]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(
                f"{path}: {key} {min(twice)!r} is there twice; give each a name of its own"
            )
    if not found["train"]:
        frozen = "data" in table and "corpus" not in table
        rule = (
            "this is for corpora, and a recipe with [data] trains on features of whole shards"
            if frozen
            else "a recipe must say what to train on"
        )
        raise ConfigError(f"{path} has no [[corpus]] table; {rule}")
    return found
