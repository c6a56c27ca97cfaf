"""What must hold of a consensus, whatever the captions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamvid.data.consensus import consensus

# Few words, so that captions share n-grams as real ones do.
captions = st.lists(
    st.sampled_from(["a", "dog", "cat", "runs", "fast", "on"]), min_size=1, max_size=7
)
media = st.lists(captions.map(" ".join), min_size=1, max_size=6)


@given(st.lists(media, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_captions_and_of_media_says_nothing(
    groups: list[list[str]], rng: random.Random
) -> None:
    scores = consensus(groups)
    order = rng.sample(range(len(groups)), len(groups))
    orders = [rng.sample(range(len(groups[g])), len(groups[g])) for g in order]
    mixed = [[groups[g][i] for i in inner] for g, inner in zip(order, orders, strict=True)]
    wanted = [[scores[g][i] for i in inner] for g, inner in zip(order, orders, strict=True)]
    for got, want in zip(consensus(mixed), wanted, strict=True):
        assert got == pytest.approx(want)


@given(media, captions.map(" ".join), captions.map(" ".join), st.integers(2, 6))
def test_what_all_but_one_say_scores_highest(
    others: list[str], said: str, odd: str, times: int
) -> None:
    *same, last = consensus([[said] * times + [odd], others])[0]
    assert same == pytest.approx([same[0]] * times)
    assert same[0] >= last - 1e-9


@given(st.lists(media, min_size=1, max_size=4))
def test_scores_are_shares(groups: list[list[str]]) -> None:
    assert all(-1e-9 <= score <= 1 + 1e-9 for group in consensus(groups) for score in group)


def test_identical_captions_agree_fully_and_strangers_not_at_all() -> None:
    [same, strangers] = consensus([["a dog runs fast"] * 3, ["one two three", "four five six"]])
    assert same == pytest.approx([1, 1, 1])
    assert strangers == [0, 0]


def test_case_and_rare_words() -> None:
    # "a" is said of every media and so weighs nothing; "dog" is what the captions share.
    groups = [["A DOG", "a dog", "a lamp"], ["a cat", "a cat"]]
    dog, same_dog, lamp = consensus(groups)[0]
    assert dog == same_dog > lamp == 0


def test_a_lone_caption_has_nobody_to_agree_with() -> None:
    assert consensus([["a dog runs"]]) == [[0.0]]
