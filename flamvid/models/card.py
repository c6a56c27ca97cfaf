"""What belongs to a Flamingo beside its tensors, so that it is saved with it and comes back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["CONTRASTIVE", "Card", "TokenizerFiles"]

CONTRASTIVE = "contrastive.safetensors"  # what search embeds with, beside the model
# What save_pretrained says of the model's own tensors.
_OWN = {"format", "dtype", "adapter", "resampler", "xattn", "lm_config", "vision_config"}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as the files that it is."""

    folder: Path

    def save_pretrained(self, folder: Path) -> None:
        """Copy them to another folder."""
        if folder.resolve() == self.folder.resolve():
            return
        for kind in ("tokenizer*", "special_tokens_map.json", "chat_template.jinja"):
            for file in self.folder.glob(kind):
                shutil.copyfile(file, folder / file.name)


@dataclass(frozen=True, slots=True, eq=False)
class Card:
    """Name, licence, prompts, tokens and pictures (`about`), tokenizer, and the heads of search.

    vocabulary: ids of the tokens that the model was trained to choose from, int64 [V]; None for
    all. tokenizer: anything with transformers' `save_pretrained`. contrastive: the heads' file.
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Tensor | None = None
    tokenizer: Any = None
    contrastive: Path | None = None

    @classmethod
    def of_saved(cls, folder: Path, table: Mapping[str, Any], vocabulary: Tensor | None) -> Card:
        """That of a saved model, of whose flamvid.toml `table` is."""
        about = {key: value for key, value in table.items() if key not in _OWN}
        file = folder / str(about.get("contrastive") or CONTRASTIVE)
        heads = file if file.is_file() else None
        return cls(about, vocabulary, TokenizerFiles(folder), heads)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files that go with a model; the table that goes into its flamvid.toml."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.contrastive is None:
            return {key: value for key, value in self.about.items() if key != "contrastive"}
        if not (folder / CONTRASTIVE).exists() or not self.contrastive.samefile(
            folder / CONTRASTIVE
        ):
            shutil.copyfile(self.contrastive, folder / CONTRASTIVE)
        return {**self.about, "contrastive": CONTRASTIVE}
