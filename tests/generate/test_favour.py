"""Favoured words: what is gained and given back, and that a search finds the best of both."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from flamvid.generate.config import GenerationConfig
from flamvid.generate.engine import search
from flamvid.generate.favour import Favour, Favoured, favour
from flamvid.ops import media_index
from tests.generate.test_engine import END, MEDIA, blind

WORD, PAIR = Favour((7,), 2.0), Favour((8, 9), 3.0)


def gained(tokens: list[int]) -> float:
    text = Favoured.at_start([WORD, PAIR])
    for token in tokens:
        text = text.after(token)
    return text.gained


@pytest.mark.parametrize(
    ("tokens", "gain"),
    [
        ([], 0.0),
        ([7], 2.0),
        ([7, 7], 2.0),  # once
        ([5, 8, 9], 3.0),
        ([8], 3.0),  # on the way
        ([8, 5], 0.0),  # given back
        ([8, 8, 9], 3.0),
        ([8, 5, 8, 9, 8, 9], 3.0),
        ([9, 8, 7], 2.0),
        ([8, 9, 7, 1], 5.0),
    ],
)
def test_what_a_text_has_gained(tokens: list[int], gain: float) -> None:
    assert gained(tokens) == gain


def test_tokens_gain_one_by_one_what_the_text_gains() -> None:
    for tokens in itertools.product([5, 7, 8, 9], repeat=5):
        text, total = Favoured.at_start([WORD, PAIR]), 0.0
        for token in tokens:
            row = favour(torch.zeros(1, 12), [text])[0]
            total += float(row[token])
            text = text.after(token)
        assert total == text.gained


@torch.no_grad()
def best_by_hand(ids: torch.Tensor, seed: int, words: list[Favour], length: int) -> float:
    """The best total of log-probability and gain over all texts of at most `length` tokens."""
    lm = blind(seed).lm.lm
    best = -math.inf
    for n in range(length + 1):
        texts = list(itertools.product([t for t in range(40) if t != END], repeat=n))
        wholes = torch.tensor([[*text, *[END] * (n < length)] for text in texts])
        rows = torch.cat([ids.expand(len(texts), -1), wholes], dim=1)
        logprobs = lm(rows).logits[:, 3:-1].log_softmax(-1)
        totals = logprobs.gather(2, wholes[..., None]).sum((1, 2)).tolist()
        for text, total in zip(texts, totals, strict=True):
            state = Favoured.at_start(words)
            for token in text:
                state = state.after(token)
            best = max(best, total + state.gained)
    return best


def test_a_wide_search_finds_the_best_of_likelihood_and_gain() -> None:
    changed = 0
    for seed in range(3):
        model = blind(seed)
        ids = torch.randint(6, 40, (1, 4))
        words = [Favour((7,), 4.0), Favour((8, 9), 5.0)]
        latents, index = torch.zeros(1, 1, 2, 8), media_index(ids, MEDIA)
        config = GenerationConfig(beams=40, max_tokens=2)
        [[made]] = search(model, latents, ids, index, END, config, favours=[words])
        [[plain]] = search(model, latents, ids, index, END, config)
        changed += made.ids != plain.ids
        state = Favoured.at_start(words)
        for token in made.ids:
            state = state.after(token)
        # What it reports is the log-probability alone.
        assert made.logprob + state.gained == pytest.approx(
            best_by_hand(ids, seed, words, 2), abs=1e-4
        )
    assert changed


def test_words_that_the_head_lacks_are_no_obstacle() -> None:
    model = blind(1)
    ids = torch.randint(6, 40, (2, 4))
    latents, index = torch.zeros(2, 1, 2, 8), media_index(ids, MEDIA)
    head = model.lm.head_of(torch.tensor([END, 10, 11, 12, 13, 14]))
    config = GenerationConfig(beams=3, max_tokens=4)
    favours = [[Favour((12,), 50.0), Favour((7,), 50.0)], []]
    first, second = search(model, latents, ids, index, END, config, head=head, favours=favours)
    assert 12 in first[0].ids
    [_, plain] = search(model, latents, ids, index, END, config, head=head)
    assert second == plain
