"""The word stage: which words, how often, and that the resampler learns them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.train.words import WordModel, frequent_words, word_targets

CAPTIONS = [
    ["a dog runs", "A dog and a dog"],
    ["a cat sits", "the cat", "cat", "a dog"],
    ["birds"],
]


def test_frequent_words_are_those_of_most_media() -> None:
    # "a" and "dog" are in two media; however often one media says "cat", it counts once.
    assert frequent_words(CAPTIONS, 2) == ["a", "dog"]
    assert frequent_words(CAPTIONS, 4) == ["a", "dog", "and", "birds"]
    assert len(frequent_words(CAPTIONS, 100)) == 8


def test_a_target_is_the_share_of_captions_with_the_word() -> None:
    targets = word_targets(CAPTIONS, ["dog", "cat", "a", "horse"])
    wanted = [[1, 0, 1, 0], [0.25, 0.75, 0.5, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(targets, torch.tensor(wanted))


@torch.no_grad()
def test_the_loss_is_summed_over_words_and_averaged_over_media() -> None:
    torch.manual_seed(0)
    config = ResamplerConfig(features=6, width=8, heads=1, head_width=8, latents=2)
    net = WordModel(PerceiverResampler(config), 5)
    assert net.head.bias.tolist() == [-4.0] * 5
    features, counts = torch.randn(3, 4, 2, 6), torch.tensor([4, 1, 2])
    targets = torch.rand(3, 5)
    one_by_one = [
        F.binary_cross_entropy_with_logits(
            net.head(net.resampler(features[i : i + 1, : counts[i]]).mean(1)),
            targets[i : i + 1],
            reduction="sum",
        )
        for i in range(3)
    ]
    loss = net(features, counts, targets)
    assert float(loss) == pytest.approx(float(sum(one_by_one)) / 3, rel=1e-4)
