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

LABELS = Labels(3, 0.1)


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


def swapped(labels: tuple[str, ...], caption: str, seed: int) -> tuple[tuple[str, ...], str]:
    return LabelNoise(drop=0.0, drop_all=0.0, swap=1.0)(
        labels, caption, LABELS, random.Random(seed)
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_swapped_is_swapped_in_both(seed: int) -> None:
    (first, new), caption = swapped(("stage", "guitar"), "a man plays guitar", seed)
    assert first == "stage"
    assert new in LABELS.words
    assert new not in LABELS.animals
    assert caption == f"a man plays {new}"
    # What the encoder did not see is put among the labels.
    labels, caption = swapped((), "the dog sleeps", seed)
    [new] = labels
    assert new in LABELS.animals
    assert caption == f"the {new} sleeps"


def test_at_times_a_person_becomes_an_animal() -> None:
    made = [swapped(("stage",), "a man sings", seed) for seed in range(300)]
    changed = [(labels, caption) for labels, caption in made if caption != "a man sings"]
    assert 60 < len(changed) < 140  # a third of them
    for labels, caption in changed:
        [animal] = [label for label in labels if label != "stage"]
        assert animal in LABELS.animals
        assert caption in (f"a {animal} sings", f"an {animal} sings")
    # A caption that names nothing stays as it is.
    assert swapped(("stage",), "people sing", 0) == (("stage",), "people sing")


def test_there_are_no_more_labels_than_a_prompt_says() -> None:
    for seed in range(50):
        labels, caption = swapped(("stage", "lamp", "suit"), "a dog", seed)
        assert len(labels) <= 3
        assert caption.split(maxsplit=1)[1] in labels


def test_labels_are_dropped_as_often_as_asked() -> None:
    noise, rng = LabelNoise(drop=0.2, drop_all=0.15, swap=0.0), random.Random(0)
    seen = [noise(("a", "b"), "x", LABELS, rng)[0] for _ in range(4000)]
    assert sum(map(len, seen)) / 8000 == pytest.approx(0.85 * 0.8, abs=0.03)
    assert sum(not labels for labels in seen) / 4000 == pytest.approx(0.15 + 0.85 * 0.04, abs=0.03)
    never = LabelNoise(drop=0.0, drop_all=0.0, swap=0.0)
    assert never(("a", "b"), "x", LABELS, rng) == (("a", "b"), "x")


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
