"""Class names said in prompts: everyday words, summed over classes, only when sure."""

from __future__ import annotations

import pytest
import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from flamvid.errors import ConfigError
from flamvid.models import labels as module
from flamvid.models.labels import CLASSES, Labels
from flamvid.models.vision import VisionConfig

SPANIELS = (215, 218, 156)
# Everyday words against WordNet's own definitions, which timm ships.
DEFINED = {
    "bear": "bear",
    "guitar": "guitar|pluck",
    "monkey": "monkey|ape|lemur|baboon|gorilla|chimpanzee|gibbon|primate",
    "butterfly": "butterfl",
    "snake": "snake|viper|rattlesnake|python|boa|cobra|mamba",
    "horse": "horse",
    "motorcycle": "motor",
}


def logits(*frames: dict[int, float]) -> Tensor:
    """Logits whose softmax is what is given, the rest spread over the other classes."""
    out = torch.empty(len(frames), CLASSES)
    for row, shares in enumerate(frames):
        out[row] = (1 - sum(shares.values())) / (CLASSES - len(shares))
        for number, share in shares.items():
            out[row, number] = share
    return out.log()


def test_breeds_add_up_to_a_dog() -> None:
    seen = logits(dict.fromkeys(SPANIELS, 0.08) | {843: 0.25, 422: 0.05})
    assert Labels(3, 0.1)(seen) == ("swing", "dog")
    assert Labels(1, 0.1)(seen) == ("swing",)
    assert Labels(3, 0.04)(seen) == ("swing", "dog", "barbell")


def test_a_name_counts_by_its_mean_over_frames() -> None:
    labels = Labels(3, 0.1)
    assert labels(logits({422: 0.9}, {}, {}, {})) == ("barbell",)
    assert labels(logits({422: 0.3}, {}, {}, {})) == ()


def test_an_encoder_that_knows_nothing_names_nothing() -> None:
    # Though 120 of the 1000 classes are dogs.
    assert Labels(3, 0.01)(torch.zeros(2, CLASSES)) == ()


def test_what_people_never_say_is_not_said() -> None:
    # "balance beam": what half of all rooms with something level in them are taken for.
    assert Labels(3, 0.1)(logits({416: 0.6, 843: 0.2})) == ("swing",)
    assert set(Labels(3, 0.1).words) >= module._UNSAID


def test_every_class_has_one_everyday_word() -> None:
    names = module._names()
    assert len(names) == CLASSES
    assert all(name == name.lower().strip() != "" for name in names)
    # No class is claimed by two words.
    claimed = [n for parts in module._EVERYDAY.values() for n in module._numbers(parts)]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("word", DEFINED)
def test_the_ranges_are_what_wordnet_says(word: str) -> None:
    info = ImageNetInfo()
    for number in module._numbers(module._EVERYDAY[word]):
        told = info.index_to_description(number, detailed=True).lower()
        assert any(part in told for part in DEFINED[word].split("|")), told


def test_an_encoder_of_other_classes_has_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"tells 10 classes apart; vision\.labels needs"):
        Labels(3, 0.1)(torch.zeros(1, 10))


def test_a_clip_tower_has_no_labels() -> None:
    with pytest.raises(ConfigError, match=r"vision\.labels is 3"):
        VisionConfig(encoder="clip:openai/clip-vit-base-patch32", labels=3)
    with pytest.raises(ConfigError, match=r"vision\.labels is -1"):
        VisionConfig(encoder="timm:tf_efficientnet_lite0", labels=-1)


def test_features_depend_on_the_picture_and_not_on_labels() -> None:
    plain = VisionConfig(encoder="timm:tf_efficientnet_lite0", weights="efficientnet-lite0")
    said = VisionConfig(encoder=plain.encoder, weights=plain.weights, labels=3)
    wide = VisionConfig(encoder=plain.encoder, weights=plain.weights, size=260)
    assert plain.features == said.features != wide.features
