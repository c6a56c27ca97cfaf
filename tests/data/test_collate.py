"""Documents to tensors: layouts, windows and what is scored, spelled out token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid.data.collate import Bad, collate, make_row
from flamvid.data.files import Held
from flamvid.data.media import Pictures
from flamvid.data.samples import Document, Media
from flamvid.errors import SourceError
from flamvid.ops import media_index
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus
from tests.tiny import encode, make_tokenizer, picture

PAGES = corpus("interleaved", "x", next=0.0)
TOKENIZER = make_tokenizer()


def still(value: int) -> Media:
    """A picture of one shade."""
    return Media(np.zeros(1), torch.full((1, 3, 16, 16), value, dtype=torch.uint8))


def said(ids: list[int] | tuple[int, ...], prompts: PromptFormat) -> str:
    return str(prompts.tokenizer.decode(list(ids)))


def test_a_pair_is_bos_media_text_end(prompts: PromptFormat) -> None:
    row = make_row(
        Document("a", (still(1),), ("a red wall",)), corpus("images", "x"), prompts, None
    )
    assert said(row.ids, prompts) == "<bos><media> a red wall<end>"
    batch = collate("c", [row], prompts)
    scored = [said([t], prompts) for t in batch.targets[0].tolist() if t >= 0]
    assert "".join(scored) == " a red wall<end>"
    assert batch.targets[0, 0] == -100  # the media that follows <bos>
    assert batch.targets[0, -1] == -100  # nothing follows the end


@pytest.mark.parametrize("eos", ["<unk>", "<bos>"])  # some have one token for BOS and EOS
def test_a_text_ends_in_the_eos_of_the_language_model_too(eos: str, prompts: PromptFormat) -> None:
    """Where `<EOC>` was added to its tokens: the paper's `<BOS><image>text<EOC><EOS>`."""
    prompts = replace(prompts, eos_id=prompts.tokenizer.convert_tokens_to_ids(eos))
    pair = Document("a", (still(1),), ("a red wall",))
    page = Document("p", (still(1), f" green{eos}", still(2), " blue"))
    for document, config, text in (
        (pair, corpus("images", "x"), f" a red wall<end>{eos}"),
        (page, PAGES, f" green<end> blue<end>{eos}"),
    ):
        row = make_row(document, config, prompts, None)
        targets = collate("c", [row], prompts).targets[0].tolist()
        assert "".join(said([t], prompts) for t in targets if t >= 0) == text
    with pytest.raises(SourceError, match="has no text"):
        make_row(Document("p", (still(1), eos)), PAGES, prompts, None)


@pytest.mark.parametrize(
    ("kind", "frames", "tokens"),
    [("manifest", 1, 64), ("images", 1, 64), ("frames", 1, 64), ("frames", 2, 32)],
)
def test_texts_of_pictures_and_clips_are_as_long_as_in_the_paper(
    prompts: PromptFormat, kind: str, frames: int, tokens: int
) -> None:
    held = Pictures((Held(encode(picture((1, 0, 0))), "red"),) * frames)
    document = Document("a", (held,), ("a red wall and " * 40,))
    row = make_row(document, corpus(kind, "x"), prompts, None)
    assert len(row.ids) == tokens


def test_a_page_ends_what_was_said_before_each_media(prompts: PromptFormat) -> None:
    document = Document("p", ("red", still(1), " green", still(2), still(3), " blue"))
    row = make_row(document, PAGES, prompts, None)
    assert said(row.ids, prompts) == "<bos>red<end><media> green<end><media><media> blue<end>"
    batch = collate("c", [row], prompts)
    scored = "".join(said([t], prompts) for t in batch.targets[0].tolist() if t >= 0)
    assert scored == "red<end> green<end> blue<end>"
    assert batch.frames is not None
    assert batch.frames[0, :, 0, 0, 0, 0].tolist() == [1, 2, 3]


def test_tokens_around_media_are_not_scored() -> None:
    tokenizer = make_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ("<bos>", "<media>", "<end>", "<unk>")]
    prompts = PromptFormat(tokenizer, ids[0], ids[1], ids[2], around_id=ids[3])
    row = make_row(Document("p", (still(1), still(2), " red")), PAGES, prompts, None)
    assert said(row.ids, prompts) == "<bos><unk><media><unk><media><unk> red<end>"
    targets = collate("c", [row], prompts).targets[0].tolist()
    assert "".join(said([t], prompts) for t in targets if t >= 0) == " red<end>"


def test_a_text_that_spells_a_special_token_is_only_text(prompts: PromptFormat) -> None:
    row = make_row(Document("p", ("red <media><end> wall", still(1), " b")), PAGES, prompts, None)
    assert row.ids.count(prompts.media_id) == 1


def test_rows_are_padded_and_bad_ones_are_left_out(prompts: PromptFormat) -> None:
    pairs = corpus("images", "x")
    documents = [Document(str(n), (still(n),) * n, ("red " * n,)) for n in (1, 3)]
    rows = [make_row(d, pairs, prompts, None) for d in documents]
    batch = collate("c", rows, prompts, [Bad("x", "no")])
    assert batch.keys == ("1", "3")
    assert batch.bad == (Bad("x", "no"),)
    assert (batch.targets[0, len(rows[0].ids) - 1 :] == -100).all()
    assert batch.frame_counts is not None
    assert batch.frame_counts.tolist() == [[1, 1, 1], [1, 1, 1]]
    empty = collate("c", [], prompts, [Bad("x", "no")])
    assert empty.keys == ()
    assert (empty.targets == -100).all()


def test_a_document_without_text_is_an_error(prompts: PromptFormat) -> None:
    with pytest.raises(SourceError, match="no text"):
        make_row(Document("p", (still(1), still(2))), PAGES, prompts, None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(4, 40), st.integers(1, 4))
def test_a_window_keeps_each_media_with_its_text(
    lengths: list[int], tokens: int, media: int
) -> None:
    prompts = PromptFormat(TOKENIZER, 1, 2, 3)
    letters = "abcdefghijkl"
    parts: list[str | Media] = []
    for n, length in enumerate(lengths):
        parts += [still(n), letters[n] * length] if length else [still(n)]
    config = corpus("interleaved", "x", max_tokens=tokens, media=media)
    try:
        row = make_row(Document("p", tuple(parts)), config, prompts, random.Random(str(lengths)))
    except SourceError:
        return
    assert len(row.ids) <= tokens
    assert len(row.media) == row.ids.count(2) <= media
    assert row.media or len(lengths) == 0
    index = media_index(torch.tensor([row.ids]), 2)[0]
    values = [int(m.frames[0, 0, 0, 0]) for m in row.media if m.frames is not None]
    for token, seen in zip(row.ids, index.tolist(), strict=True):
        text = TOKENIZER.decode([token])
        if text[:1] in letters and seen >= 0:
            assert letters.index(text[0]) == values[seen]


def test_chances_are_those_of_the_recipe(prompts: PromptFormat) -> None:
    rng = random.Random(0)
    page = Document("p", (still(1), " red", still(2), " blue"))
    pair = Document("a", (still(1),), ("red", "blue"))
    pages = corpus("interleaved", "x", next=0.5)
    ahead = [make_row(page, pages, prompts, rng).attend_next for _ in range(400)]
    assert 150 < sum(ahead) < 250
    config = corpus("images", "x")
    texts = [said(make_row(pair, config, prompts, rng).ids, prompts) for _ in range(400)]
    assert 150 < sum("<media> " in text for text in texts) < 250
    assert 150 < sum("red" in text for text in texts) < 250
    assert not any(make_row(pair, pages, prompts, rng).attend_next for _ in range(20))
