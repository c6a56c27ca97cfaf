"""Tokens become pieces of text, whole letters each."""

from __future__ import annotations

from flamvid.generate.tell import Teller
from flamvid.text.prompt import PromptFormat
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()  # of bytes: the letters below take two and three tokens
PROMPTS = PromptFormat(TOKENIZER, *TOKENIZER.convert_tokens_to_ids(["<bos>", "<media>", "<end>"]))


def test_half_a_letter_waits_for_the_rest() -> None:
    pieces: list[str] = []
    teller = Teller(PROMPTS, pieces.append)
    for token in PROMPTS.encode_text(" né 犬"):
        teller(0, token)
    assert [piece for piece in pieces if piece] == ["n", "é", " 犬"]
    teller.end()
    assert "".join(pieces) == "né 犬"  # nothing twice


def test_a_text_that_ends_within_a_letter_is_told_to_its_end() -> None:
    pieces: list[str] = []
    teller = Teller(PROMPTS, pieces.append)
    ids = PROMPTS.encode_text(" né")[:-1]
    for token in ids:
        teller(0, token)
    assert "".join(pieces) == "n"
    teller.end()
    assert "".join(pieces) == PROMPTS.decode(ids) == "n\ufffd"
