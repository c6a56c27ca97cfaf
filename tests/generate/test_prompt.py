"""A prompt reads its media, chooses from the model's own tokens, and moves on to the next media."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.generate.config import GenerationConfig
from flamvid.generate.prompt import Prompt
from flamvid.ops import media_index
from flamvid.weights.load import LoadedModel, load_model
from tests.tiny import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """One that was trained to say two letters, and to ask for the next media."""
    model = load_model(str(make_model(tmp_path_factory.mktemp("model"))))
    words = [model.prompts.end_id, model.prompts.media_id, *model.prompts.encode_text("xy")]
    return replace(model, head=model.flamingo.lm.head_of(torch.tensor(sorted(words))))


def latents(number: int) -> list[Tensor]:
    torch.manual_seed(number)
    return list(torch.randn(number, 1, 4, 16))


@torch.no_grad()
def test_texts_are_of_the_tokens_of_the_head_and_see_the_media_that_they_ask_for(
    model: LoadedModel,
) -> None:
    config = GenerationConfig(beams=4, returns=4, max_tokens=5, min_tokens=5)
    seen, ids = latents(3), model.prompts.caption()
    assert model.head is not None
    said = Prompt(model, seen, ids).search(config)
    assert len(said) == 4
    for made in said:
        assert set(made.ids) <= set(model.head.ids.tolist())
        # Without a cache, the index of the whole text says what each token sees.
        text = torch.tensor([[*ids, *made.ids]])
        index = media_index(text, model.prompts.media_id).clamp_max(2)
        media = model.flamingo.read(torch.cat(seen)[None], index)
        hidden = model.flamingo.lm(text, media)[0, len(ids) - 1 : -1]
        logprobs = model.head(hidden).log_softmax(-1)
        total = logprobs.gather(1, model.head.columns(text[0, len(ids) :])[:, None]).sum()
        assert made.logprob == pytest.approx(float(total), abs=1e-4)
    assert any(model.prompts.media_id in made.ids[:-1] for made in said)


@torch.no_grad()
def test_options_are_scored_among_all_tokens(model: LoadedModel) -> None:
    ids, options = model.prompts.caption(), [model.prompts.encode_text(" red wall"), [7]]
    scores = Prompt(model, latents(1), ids).score(options)
    for option, score in zip(options, scores, strict=True):
        text = torch.tensor([[*ids, *option]])
        media = model.flamingo.read(latents(1)[0][None], media_index(text, model.prompts.media_id))
        logits = model.flamingo.lm.head(model.flamingo.lm(text, media))[0, len(ids) - 1 : -1]
        want = logits.log_softmax(-1).gather(1, text[0, len(ids) :, None])[:, 0]
        assert score == pytest.approx(want.tolist(), abs=1e-4)


def test_a_prompt_longer_than_the_language_model_was_made_for_is_refused(
    model: LoadedModel,
) -> None:
    room = model.flamingo.lm.positions
    assert room is not None
    letters = model.prompts.encode_text("x")
    prompt = Prompt(model, latents(1), [*model.prompts.caption(), *letters * room][: room - 4])
    prompt.search(GenerationConfig(beams=1, max_tokens=4))
    with pytest.raises(InputError, match=rf"{room - 4} tokens and its text 5, .* made for {room}"):
        prompt.search(GenerationConfig(beams=1, max_tokens=5))
    with pytest.raises(InputError, match="fewer or shorter shots"):
        prompt.score([letters, letters * 5])
