"""A tokenizer from its tokenizer.json, under the names that transformers' tokenizers have.

The library `tokenizers` does the work, as it does for transformers, whose import takes longer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flamvid.errors import WeightsError

__all__ = ["FastTokenizer"]


class FastTokenizer:
    """Text to ids and back."""

    def __init__(self, folder: Path) -> None:
        self._folder, file = folder, folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises Exception itself
            raise WeightsError(f"{folder} holds no tokenizer.json that can be read") from error
        self.unk_token = _unknown(folder / "tokenizer_config.json")

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """`input_ids` of a text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids}

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    @property
    def unk_token_id(self) -> int | None:
        """The id of what stands for unknown tokens, if anything does."""
        return None if self.unk_token is None else self._tokenizer.token_to_id(self.unk_token)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of a token by its name, or that of the unknown token."""
        at: int | None = self._tokenizer.token_to_id(token)
        return self.unk_token_id if at is None else at

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """The name of a token, or of each."""
        if isinstance(ids, int):
            return self._tokenizer.id_to_token(ids)
        return [self._tokenizer.id_to_token(i) for i in ids]

    def save_pretrained(self, folder: Path) -> None:
        """Copy the tokenizer's files to another folder."""
        if folder.resolve() == self._folder.resolve():
            return
        for file in self._folder.glob("tokenizer*.json"):
            shutil.copyfile(file, folder / file.name)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def _unknown(file: Path) -> str | None:
    try:
        token = json.loads(file.read_text(encoding="utf-8")).get("unk_token")
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
