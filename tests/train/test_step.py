"""One update: what is scored, and that the fast way gives what the plain way gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.lm import TokenHead
from flamvid.ops import media_index
from flamvid.train.optimizer import make_optimizer, rate
from flamvid.train.recipe import CaptionStage
from flamvid.train.step import (
    Beginnings,
    TextBatch,
    caption_loss,
    caption_rows,
    vocabulary,
)
from flamvid.weights.load import LoadedModel
from tests.tiny import WORDS, caption

CAPTIONS = [[caption(word, n) for n in range(4)] for word in WORDS]


def head_for(model: LoadedModel, captions: list[list[str]]) -> TokenHead:
    return model.flamingo.lm.head_of(vocabulary(model.prompts, captions))


def scored(model: LoadedModel, batch: TextBatch, head: TokenHead, row: int) -> list[str]:
    """For each place of a row the token that is asked for there, "" where none is."""
    names = model.prompts.tokenizer.convert_ids_to_tokens(head.ids.tolist())
    return [names[at] if at >= 0 else "" for at in batch.targets[row].tolist()]


def test_the_vocabulary_is_what_captions_use_and_the_end(model: LoadedModel) -> None:
    ids = vocabulary(model.prompts, [["a red wall"], ["red", "a wall"]])
    names = model.prompts.tokenizer.convert_ids_to_tokens(ids.tolist())
    assert set(names) == {"<end>", "Ġa", "Ġred", "Ġwall"}
    assert ids.tolist() == sorted(ids.tolist())


def test_labels_are_said_but_not_scored(model: LoadedModel) -> None:
    head = model.flamingo.lm.head_of(torch.arange(len(model.prompts.tokenizer)))
    labels = [("red", "wall"), ()]
    batch = caption_rows(model.prompts, ["a red wall", "blue paint"], head, 24, labels)
    opening = model.prompts.caption(labels=labels[0])
    assert batch.ids[0, : len(opening)].tolist() == opening
    assert len(opening) > 2
    told = scored(model, batch, head, 0)
    assert told[: len(opening) - 1] == [""] * (len(opening) - 1)
    assert told[len(opening) - 1 :] == ["Ġa", "Ġred", "Ġwall", "<end>"]
    assert scored(model, batch, head, 1)[:4] == ["", "Ġblue", "Ġpaint", "<end>"]


def test_only_the_text_and_its_end_are_scored(model: LoadedModel) -> None:
    head = head_for(model, CAPTIONS)
    batch = caption_rows(model.prompts, ["a red wall", "blue paint"], head, 24)
    bos, media, end = model.prompts.bos_id, model.prompts.media_id, model.prompts.end_id
    assert batch.ids[:, :2].tolist() == [[bos, media]] * 2
    assert batch.ids[0, -1] == end
    # Under each token stands the next one; under <BOS> comes the media, which is not scored.
    assert scored(model, batch, head, 0) == ["", "Ġa", "Ġred", "Ġwall", "<end>"]
    assert scored(model, batch, head, 1) == ["", "Ġblue", "Ġpaint", "<end>", ""]
    # Nor is it where every token is in the head, the media's too.
    head = model.flamingo.lm.head_of(torch.arange(len(model.prompts.tokenizer)))
    batch = caption_rows(model.prompts, ["a red wall"], head, 24)
    assert scored(model, batch, head, 0) == ["", "Ġa", "Ġred", "Ġwall", "<end>"]


def test_a_caption_cut_short_does_not_end(model: LoadedModel) -> None:
    head = head_for(model, CAPTIONS)
    batch = caption_rows(model.prompts, ["the wall is red", "a red wall", "blue paint"], head, 3)
    assert scored(model, batch, head, 0) == ["", "Ġthe", "Ġwall", "Ġis"]
    assert scored(model, batch, head, 1) == ["", "Ġa", "Ġred", "Ġwall"]
    assert scored(model, batch, head, 2) == ["", "Ġblue", "Ġpaint", "<end>"]


def test_tokens_outside_the_head_are_read_but_not_scored(model: LoadedModel) -> None:
    head = head_for(model, [["a wall"]])
    batch = caption_rows(model.prompts, ["a red wall"], head, 24)
    assert scored(model, batch, head, 0) == ["", "Ġa", "", "Ġwall", "<end>"]
    assert "Ġred" in model.prompts.tokenizer.convert_ids_to_tokens(batch.ids[0].tolist())


def seeing(model: LoadedModel) -> LoadedModel:
    """The same with open gates, or media would change nothing."""
    torch.manual_seed(1)
    for name, parameter in model.flamingo.trained():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.7)
        elif "xattn" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def example(media: int) -> tuple[Tensor, Tensor, list[str]]:
    """Features [B,4,4,256] of one to four frames, their counts, two captions of each media."""
    torch.manual_seed(2)
    counts = torch.tensor([1 + i % 4 for i in range(media)])
    features = torch.randn(media, 4, 4, 256)
    features[torch.arange(4) >= counts[:, None]] = 0
    texts = [caption(WORDS[i % 3], (i + j) % 4) for i in range(media) for j in (0, 1)]
    return features, counts, texts


def plain_loss(
    model: LoadedModel, features: Tensor, counts: Tensor, texts: list[str], head: TokenHead
) -> Tensor:
    """Caption by caption, without padding, from the logits over all tokens."""
    prompts, losses = model.prompts, []
    for row, text in enumerate(texts):
        ids = [*prompts.caption(), *prompts.encode_text(f" {text}"), prompts.end_id]
        ids_1S = torch.tensor([ids])
        frames = features[row // 2, : counts[row // 2]]
        index = media_index(ids_1S, prompts.media_id)
        logits = model.flamingo(frames[None, None], ids_1S, index)[0, 1:-1]
        chosen = head.columns(ids_1S[0, 2:])
        losses.append(F.cross_entropy(logits[:, head.ids], chosen, reduction="none"))
    return torch.cat(losses).mean()


def fast_loss(
    model: LoadedModel, features: Tensor, counts: Tensor, texts: list[str], head: TokenHead
) -> Tensor:
    batch = caption_rows(model.prompts, texts, head, 24)
    return caption_loss(model.flamingo, features, counts, batch, head, model.prompts.media_id)


@torch.no_grad()
def test_the_loss_is_that_of_captions_one_by_one(model: LoadedModel) -> None:
    head = head_for(seeing(model), CAPTIONS)
    features, counts, texts = example(11)  # 22 rows: more than go through the LM together
    wanted = plain_loss(model, features, counts, texts, head)
    torch.testing.assert_close(fast_loss(model, features, counts, texts, head), wanted)
    # The example can tell rows from each other: other media give another loss.
    assert abs(fast_loss(model, features.roll(1, 0), counts.roll(1), texts, head) - wanted) > 0.001


def test_gradients_are_those_of_captions_one_by_one(model: LoadedModel) -> None:
    head = head_for(seeing(model), CAPTIONS)
    trained = dict(model.flamingo.trained())
    example_ = example(9)
    fast, plain = (
        torch.autograd.grad(loss(model, *example_, head), list(trained.values()))
        for loss in (fast_loss, plain_loss)
    )
    for name, got, want in zip(trained, fast, plain, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3, msg=name)


@torch.no_grad()
def test_the_loss_does_not_depend_on_the_order_of_rows(model: LoadedModel) -> None:
    head = head_for(seeing(model), CAPTIONS)
    features, counts, texts = example(11)
    order = torch.randperm(11)
    mixed = [texts[2 * i + j] for i in order.tolist() for j in (1, 0)]
    torch.testing.assert_close(
        fast_loss(model, features[order], counts[order], mixed, head),
        fast_loss(model, features, counts, texts, head),
    )


def test_a_step_changes_the_trained_parts_alone(model: LoadedModel) -> None:
    flamingo = seeing(model).flamingo.train()
    trained = dict(flamingo.trained())
    ours = {id(p) for p in trained.values()}
    frozen = {k: p for k, p in flamingo.named_parameters() if id(p) not in ours}
    frozen |= dict(flamingo.named_buffers())
    before = {k: p.detach().clone() for k, p in (frozen | trained).items()}
    assert len(frozen) > 50
    optimizer = make_optimizer(flamingo.trained(), CaptionStage().optim)
    for _ in range(2):
        head = head_for(model, CAPTIONS)
        fast_loss(model, *example(6), head).backward()
        optimizer.step()
    assert all(torch.equal(p, before[k]) for k, p in frozen.items())
    assert all(p.grad is None for p in frozen.values())
    unmoved = [k for k, p in trained.items() if torch.equal(p, before[k])]
    assert unmoved == []


def test_every_trained_parameter_is_in_one_group(model: LoadedModel) -> None:
    stage = CaptionStage(
        learning_rate=1.0, gate_learning_rate=2.0, resampler_learning_rate=3.0, weight_decay=0.5
    )
    groups = make_optimizer(model.flamingo.trained(), stage.optim).param_groups
    names = {id(p): name for name, p in model.flamingo.trained()}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            rest = 3.0 if name.startswith("resampler.") else 1.0
            assert group["peak"] == (2.0 if name.endswith("_gate") else rest), name
            decays = name.startswith("xattn.") and parameter.ndim == 2
            assert group["weight_decay"] == (0.5 if decays else 0.0), name


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (5, 10), (1, 0), (10, 10)])
def test_the_rate_rises_to_its_peak_and_never_above(schedule: str, steps: int, warmup: int) -> None:
    rates = [rate(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 <= share <= 1 for share in rates)
    rise = rates[:warmup]
    assert rise == pytest.approx([(i + 1) / warmup for i in range(len(rise))])
    fall = rates[warmup:]
    assert fall == sorted(fall, reverse=True)
    assert not fall or fall[0] == 1


def test_the_rate_falls_as_a_cosine_or_not_at_all() -> None:
    assert rate(60, 110, 10, "cosine") == pytest.approx(0.5)
    assert rate(35, 110, 10, "cosine") == pytest.approx(0.5 + math.sqrt(0.125))
    assert rate(109, 110, 10, "cosine") < 0.001
    assert rate(500, 110, 10, "cosine") == 0
    assert {rate(step, 110, 10, "constant") for step in range(10, 500)} == {1.0}


def test_what_no_media_reaches_is_made_once_and_changes_nothing(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    flamingo = seeing(model).flamingo
    assert flamingo.lm.unmoved == min(flamingo.lm.at) > 0
    head, (features, counts, texts) = head_for(model, CAPTIONS), example(11)
    batch = caption_rows(model.prompts, texts, head, 24)
    known = Beginnings(flamingo.lm)
    media_id, trained = model.prompts.media_id, dict(flamingo.trained())

    def loss(beginnings: Beginnings | None) -> Tensor:
        return caption_loss(flamingo, features, counts, batch, head, media_id, beginnings)

    wanted = loss(None)
    begun = loss(known)
    torch.testing.assert_close(begun, wanted)
    grads, others = (
        torch.autograd.grad(x, list(trained.values()), allow_unused=True) for x in (begun, wanted)
    )
    for name, got, want in zip(trained, grads, others, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3, msg=name)

    def never(*_: object) -> None:
        raise AssertionError("a text that is known goes through the layers again")

    monkeypatch.setattr(flamingo.lm, "states", never)
    assert torch.equal(loss(known), begun)


def test_layers_below_media_may_be_left_out_only_if_they_never_learn(model: LoadedModel) -> None:
    lm = model.flamingo.lm
    lm.lm.model.layers[0].norm_mlp.requires_grad_()
    assert lm.unmoved == 0
