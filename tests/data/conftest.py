"""What the tests of training data share."""

from __future__ import annotations

from typing import Any

import pytest

from flamvid.data.corpus import CorpusConfig
from flamvid.text.prompt import PromptFormat
from tests.tiny import make_tokenizer


@pytest.fixture(scope="session")
def prompts() -> PromptFormat:
    """The layout of a paper's model over the tiny tokenizer."""
    tokenizer = make_tokenizer()
    bos, media, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<bos>", "<media>", "<end>"))
    return PromptFormat(tokenizer, bos, media, end)


def corpus(kind: str, *sources: str, **settings: Any) -> CorpusConfig:
    """A corpus of small pictures that are not augmented."""
    plain = {"size": 16, "flip": 0.0, "jitter": 0.0}
    return CorpusConfig(name=kind, kind=kind, sources=sources, **plain | settings)
