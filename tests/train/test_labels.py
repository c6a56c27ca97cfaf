"""Labels in training: dropped, swapped in label and caption alike, and read off the features."""

from __future__ import annotations

import random
from typing import cast

import pytest
import torch
from torch import Tensor

from flamvid.data.features import FeatureSet
from flamvid.models.labels import Labels
from flamvid.models.vision import TimmEncoder
from flamvid.train.labels import LabelNoise, label_media, swap

WORDS = ("wok", "apple", "yurt")


@pytest.mark.parametrize(
    ("caption", "old", "new", "told"),
    [
        ("a man plays a guitar", "guitar", "wok", "a man plays a wok"),
        ("a man plays a guitar", "guitar", "apple", "a man plays an apple"),
        ("an apple lies on the apple", "apple", "wok", "a wok lies on the wok"),
        ("guitars and a guitarist", "guitar", "wok", "guitars and a guitarist"),
        ("a fire truck and a truck", "fire truck", "wok", "a wok and a truck"),
    ],
)
def test_a_swap_keeps_the_sentence_whole(caption: str, old: str, new: str, told: str) -> None:
    assert swap(caption, old, new) == told


def test_what_is_swapped_is_swapped_in_both() -> None:
    noise = LabelNoise(drop=0.0, drop_all=0.0, swap=1.0)
    labels, caption = noise(("stage", "guitar"), "a man plays guitar", WORDS, random.Random(1))
    assert labels[0] == "stage"
    assert labels[1] in WORDS
    assert caption == f"a man plays {labels[1]}"
    # A caption that says none of the labels stays as it is.
    assert noise(("stage",), "a man sings", WORDS, random.Random(1)) == (("stage",), "a man sings")


def test_labels_are_dropped_as_often_as_asked() -> None:
    noise, rng = LabelNoise(drop=0.2, drop_all=0.15, swap=0.0), random.Random(0)
    seen = [noise(("a", "b"), "x", WORDS, rng)[0] for _ in range(4000)]
    assert sum(map(len, seen)) / 8000 == pytest.approx(0.85 * 0.8, abs=0.03)
    assert sum(not labels for labels in seen) / 4000 == pytest.approx(0.15 + 0.85 * 0.04, abs=0.03)
    never = LabelNoise(drop=0.0, drop_all=0.0, swap=0.0)
    assert never(("a", "b"), "x", WORDS, rng) == (("a", "b"), "x")


class Echo:
    """An encoder whose mean feature is its verdict."""

    def classify(self, features_BNF: Tensor) -> Tensor:
        return features_BNF.mean(1)


def test_media_are_labelled_by_all_their_frames() -> None:
    shard = torch.zeros(300, 2, 1000)
    shard[0, :, 422] = 20.0  # barbell
    shard[1, :, 294] = shard[2, :, 297] = 20.0  # a brown bear, a sloth bear
    shard[299, 0, 909] = 40.0  # a wok in one patch of two
    places = ((0, 0, 1), (0, 1, 2), (0, 3, 1), (0, 299, 1))
    media = FeatureSet((shard.half(),), places, tuple("abcd"), (("x",),) * 4)
    told = label_media(media, cast(TimmEncoder, Echo()), Labels(3, 0.1))
    assert told == [("barbell",), ("bear",), (), ("wok",)]
