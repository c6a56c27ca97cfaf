"""What a frozen ImageNet encoder calls what it sees, in everyday words.

A few thousand videos teach the new layers few nouns, while the encoder tells a thousand things
apart. Said in the prompt as text (the object tags of Oscar, Li et al. 2020, arXiv 2004.06165), its
own verdict reaches the language model in words that this knows already.

Legend: T frames, C classes of the encoder, W everyday words.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from flamvid.errors import ConfigError

__all__ = ["Labels"]

CLASSES = 1000

# What captions call a whole range of classes (ILSVRC 2012 numbers, both ends included).
_EVERYDAY: dict[str, tuple[int | tuple[int, int], ...]] = {
    "fish": ((0, 1), (389, 397)),
    "shark": ((2, 4),),
    "chicken": ((7, 8), 83),
    "bird": ((10, 24), (80, 82), (84, 98), (127, 144), 146),
    "salamander": ((25, 29),),
    "frog": ((30, 32),),
    "turtle": ((33, 37),),
    "lizard": ((38, 48),),
    "crocodile": ((49, 50),),
    "snake": ((52, 68),),
    "spider": ((72, 77),),
    "swan": (100,),
    "crab": ((118, 121), 125),
    "lobster": ((122, 124),),
    "penguin": (145,),
    "whale": ((147, 148),),
    "seal": ((149, 150),),
    "dog": ((151, 268), (273, 275)),
    "wolf": ((269, 272),),
    "fox": ((277, 280),),
    "cat": ((281, 285),),
    "bear": ((294, 297),),
    "beetle": ((300, 307),),
    "butterfly": ((321, 326),),
    "rabbit": ((330, 332),),
    "squirrel": (335,),
    "horse": (339,),
    "pig": ((341, 343),),
    "buffalo": ((345, 347),),
    "sheep": ((348, 349),),
    "deer": ((351, 353),),
    "camel": (354,),
    "monkey": ((365, 384),),
    "elephant": (101, (385, 386)),
    "panda": ((387, 388),),
    "guitar": (402, 546, 714),
    "plane": (404, 895),
    "graduation": (400, 667),
    "beer": ((440, 441),),
    "bicycle": (444, 671),
    "car": (436, 468, 511, 609, 627, 656, 661, 717, 751, 817),
    "train": (466, 547, 565, 705, 820),
    "wheel": (479,),
    "phone": (487, 528, 707),
    "coffee": ((504, 505), 550, 967),
    "computer": (508, 527, 620, 664, 673, 681, 878),
    "helmet": (518, 560),
    "ship": (403, 510, 628, 724),
    "boat": (472, 484, 554, 576, 625, 780, 814, 871, 914),
    "motorcycle": (665, 670),
    "fire truck": (555,),
    "truck": (569, 675, 864, 867),
    "pan": (567,),
    "piano": (579, 881),
    "saxophone": (776,),
    "trumpet": (458, 513, 566, 875),
    "drums": ((541, 542), 822),
    "flute": (558, 683, 684, 699),
    "gun": (413, 763, 764),
    "balance beam": (416, 602, 702),
    "swimsuit": (445, 638, 639, 842),
    "tent": (672,),
    "bus": (654, 779, 874),
    "police car": (734,),
    "sunglasses": ((836, 837),),
    "store": (415, 467, 582, 788, 860, 865),
    "football": (768,),
    "squash": ((939, 942),),
    "mushroom": (947, (991, 997)),
    "apple": (948,),
    "bread": (930,),
    "pasta": (959,),
    "soup": (809, 925, 926),
    "mountain": (970, 980),
    "lake": (975,),
    "beach": ((976, 978),),
    "baseball player": (981,),
    "diver": (983,),
    "flower": ((985, 986),),
}

# What rooms, clothes and captions on a screen are taken for: of 20 or more media of flamvid-base's
# training set with such a label, fewer than a twentieth have a caption that says it
# (tools/label_precision.py). People do not say them, so neither do prompts.
# fmt: off
_UNSAID = frozenset((
    "abaya", "balance beam", "bannister", "bathing cap", "bearskin", "bobsled", "bow", "buffalo",
    "bulletproof vest", "cash machine", "comic book", "croquet ball", "graduation", "hoopskirt",
    "jinrikisha", "lab coat", "neck brace", "overskirt", "oxygen mask", "potter's wheel",
    "prison", "sarong", "scoreboard", "snorkel", "solar dish", "stretcher", "theater curtain",
    "torch", "web site", "whale", "windsor tie", "worm fence",
))
# fmt: on


class Labels:
    """Names of the things in a video, by the classifier that the encoder was trained with.

    most: how many to name. least: how sure the classifier must be: the mean over frames of the
    probabilities of all classes that share the name, less what a guess would give them (an eighth
    of all classes are dogs).
    """

    def __init__(self, most: int, least: float) -> None:
        names = _names()
        words = sorted(set(names))
        self.most, self.least, self.words = most, least, tuple(words)
        self._said_W = torch.tensor([word not in _UNSAID for word in words])
        at = {word: place for place, word in enumerate(words)}
        self._word_of_class = torch.tensor([at[name] for name in names])
        self._guess_W = torch.bincount(self._word_of_class) / CLASSES

    def __call__(self, logits_TC: Tensor) -> tuple[str, ...]:
        """Names in a video, the surest first; perhaps none."""
        return tuple(self.weigh(logits_TC))

    def class_texts(self) -> tuple[str, ...]:
        """What each class shows, as a caption would begin: "a golden retriever"."""
        return tuple(f"a {name.lower()}" for name in _class_names())

    def weigh(self, logits_TC: Tensor) -> dict[str, float]:
        """The same, and how sure of each the classifier is."""
        if logits_TC.shape[-1] != CLASSES:
            raise ConfigError(
                f"the encoder tells {logits_TC.shape[-1]} classes apart; vision.labels needs one "
                f"with the {CLASSES} of ImageNet: set it to 0"
            )
        mean_C = logits_TC.float().softmax(-1).mean(0)
        share_W = mean_C.new_zeros(len(self.words))
        share_W.index_add_(0, self._word_of_class.to(mean_C.device), mean_C)
        surer_W = share_W - self._guess_W.to(share_W.device)
        top = surer_W.masked_fill(~self._said_W.to(share_W.device), -1.0).topk(self.most)
        found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        return {self.words[place]: share for share, place in found if share >= self.least}


def _names() -> list[str]:
    """The everyday word of each class, by number."""
    names = [name.lower() for name in _class_names()]
    for word, parts in _EVERYDAY.items():
        for number in _numbers(parts):
            names[number] = word
    return names


def _class_names() -> list[str]:
    """The first of WordNet's names for each class, from timm's lists; timm is slow to import."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("vision.labels needs the names of classes; install timm")
    info = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    lemmas = dict(
        line.split("\t", 1)
        for line in (info / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    )
    order = (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    return [lemmas[synset].split(",")[0] for synset in order]


def _numbers(parts: tuple[int | tuple[int, int], ...]) -> Iterator[int]:
    for part in parts:
        if isinstance(part, int):
            yield part
        else:
            yield from range(part[0], part[1] + 1)
