"""The dual heads, and what is made of them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from flamvid.models.contrastive import (
    ContrastiveConfig,
    DualHead,
    Embedder,
    mean_states,
    mean_vector,
)


def head(classes: int = 0) -> DualHead:
    torch.manual_seed(0)
    config = ContrastiveConfig(features=6, states=5, width=4, hidden=3, classes=classes)
    made = DualHead(config)
    made.vision.fit(torch.randn(50, 6) * 3 + 1)
    made.text.fit(torch.randn(50, 5))
    if classes:
        made.class_states.copy_(torch.randn(classes, 5))
    return made.eval()


def test_inputs_are_brought_to_one_scale() -> None:
    """However large they are, by the mean and deviation of what was fitted."""
    inputs = torch.randn(1000, 6) * torch.tensor([1e-2, 1, 10, 100, 1, 1]) + 5
    made = DualHead(ContrastiveConfig(features=6, states=5, width=6)).vision
    made.fit(inputs)
    torch.nn.init.eye_(made.straight.weight)
    torch.nn.init.zeros_(made.straight.bias)
    out = made(inputs)
    torch.testing.assert_close(out.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[:, 1:].std(0), torch.ones(5), atol=2e-3, rtol=0)


def test_a_part_has_the_mean_of_its_frames() -> None:
    """So that any part's vector can be made of those of single frames."""
    made = head()
    embedder = Embedder("tiny", made, lambda texts: torch.ones(len(texts), 5), lambda x: x)
    features = torch.randn(7, 9, 6)
    vectors = embedder.frames(features)
    apart = torch.cat([embedder.frames(features[t : t + 1]) for t in range(7)])
    torch.testing.assert_close(vectors, apart)
    expected = F.normalize(made.vision(features.mean(1)).mean(0), dim=0)
    torch.testing.assert_close(mean_vector(vectors), expected)
    torch.testing.assert_close(embedder.text(["a", "b"]).norm(dim=1), torch.ones(2))


def test_a_sure_classifier_moves_a_frame_to_the_name_of_its_class() -> None:
    """With all the weight on one class, what is added is that class's vector, less the mean."""
    made = head(classes=3)
    logits = torch.full((1, 3), -1e4)
    logits[0, 2] = 1e4
    plain, moved = (
        made.frames(torch.zeros(1, 6), *more) for more in ((), (logits, made.classes()))
    )
    names = made.text(made.class_states)
    torch.testing.assert_close(moved - plain, (names[2] - names.mean(0))[None])


def test_padding_is_not_part_of_a_text() -> None:
    states = torch.randn(2, 4, 5)
    real = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    torch.testing.assert_close(mean_states(states, real), expected)
