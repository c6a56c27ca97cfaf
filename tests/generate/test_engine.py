"""Search against transformers' own `generate` on a tiny language model."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig as HfConfig
from transformers import LlamaConfig, LlamaForCausalLM, TopKLogitsWarper, TopPLogitsWarper

from flamvid.errors import InputError, WeightsError
from flamvid.generate.choose import draw
from flamvid.generate.engine import Generated, GenerationConfig, generate, search
from flamvid.generate.score import score_options
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import media_index

END, MEDIA = 2, 5


class Vision(torch.nn.Module):
    width = 8


def blind(seed: int) -> Flamingo:
    """A Flamingo with closed gates: what it writes is what its LM writes."""
    torch.manual_seed(seed)
    lm = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=40,
            initializer_range=0.4,
        )
    )
    resampler = PerceiverResampler(
        ResamplerConfig(features=8, width=8, heads=1, head_width=8, latents=2)
    )
    return Flamingo(Vision(), resampler, lm, XattnConfig(heads=1, head_width=8)).eval()


@pytest.mark.parametrize("beams", [1, 3, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_equals_transformers(beams: int, length_penalty: float) -> None:
    ended = 0
    for seed in range(12):
        model = blind(seed)
        ids = torch.randint(6, 40, (2, 4))
        theirs = model.lm.lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=HfConfig(
                num_beams=beams,
                max_new_tokens=10,
                do_sample=False,
                length_penalty=length_penalty,
                eos_token_id=END,
                pad_token_id=0,
            ),
        )
        config = GenerationConfig(beams=beams, max_tokens=10, length_penalty=length_penalty)
        ours = generate(model, torch.randn(2, 1, 2, 8), ids, media_index(ids, MEDIA), END, config)
        for row, best in zip(theirs[:, 4:].tolist(), ours, strict=True):
            ended += END in row
            want = row[: row.index(END)] if END in row else row[: len(best.ids)]
            assert list(best.ids) == want
    assert ended  # the end token must have come up, or the test says little


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="beams is 0"):
        GenerationConfig(beams=0)
    with pytest.raises(InputError, match="3 beams do not"):
        GenerationConfig(beams=3, temperature=1.0)


@pytest.mark.parametrize("how", [{"beams": 1}, {"beams": 3}, {"beams": 1, "temperature": 1.0}])
def test_weights_that_are_no_numbers_are_told(how: dict[str, float]) -> None:
    model = blind(0)
    model.lm.lm.model.norm.weight.data[3] = float("nan")
    with pytest.raises(WeightsError, match="logits are no numbers"):
        found(model, torch.randint(6, 40, (1, 4)), **how)


def test_drawn_tokens_follow_the_probabilities_of_the_model() -> None:
    model = blind(3)
    ids = torch.randint(6, 40, (1, 4))
    with torch.no_grad():
        expected = (model.lm.lm(ids).logits[0, -1] / 2.0).softmax(-1)

    settings = {"beams": 1, "max_tokens": 1, "temperature": 2.0, "returns": 400}
    [texts] = found(model, ids, **settings)
    drawn = torch.tensor([made.ids[0] if made.ids else END for made in texts])
    # Three deviations of a share of 400 draws are 0.075 at most.
    assert (torch.bincount(drawn, minlength=40) / 400 - expected).abs().max() < 0.09
    assert found(model, ids, **settings) == [texts]
    assert found(model, ids, **settings, seed=1) != [texts]


def found(model: Flamingo, ids: torch.Tensor, **settings: object) -> list[list[Generated]]:
    config = GenerationConfig(**settings)  # type: ignore[arg-type]
    latents = torch.zeros(len(ids), 1, 2, 8)
    return search(model, latents, ids, media_index(ids, MEDIA), END, config)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("limits", [{"min_tokens": 6}, {"no_repeat_ngram": 2}])
def test_limits_equal_transformers(beams: int, limits: dict[str, int]) -> None:
    names = {"min_tokens": "min_new_tokens", "no_repeat_ngram": "no_repeat_ngram_size"}
    [(ours, value)] = limits.items()
    differs = 0
    for seed in range(8):
        model = blind(seed)
        # One token of prompt, so that the prompt holds no n-gram that theirs would forbid.
        ids = torch.randint(6, 40, (1, 1))
        theirs = model.lm.lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=HfConfig(
                num_beams=beams,
                max_new_tokens=8,
                do_sample=False,
                length_penalty=0.0,
                eos_token_id=END,
                pad_token_id=0,
                **{names[ours]: value},
            ),
        )
        [[best]] = found(model, ids, beams=beams, max_tokens=8, **limits)
        row = theirs[0, 1:].tolist()
        want = row[: row.index(END)] if END in row else row
        if ids[0, 0] not in want:  # theirs counts the prompt's token, too
            assert list(best.ids) == want
        [[free]] = found(model, ids, beams=beams, max_tokens=8)
        differs += free != best
    assert differs  # the limit must have mattered, or the test says little


def test_beams_return_what_transformers_returns() -> None:
    for seed in range(6):
        model = blind(seed)
        ids = torch.randint(6, 40, (2, 4))
        theirs = model.lm.lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=HfConfig(
                num_beams=4,
                num_return_sequences=3,
                max_new_tokens=6,
                do_sample=False,
                length_penalty=1.0,
                eos_token_id=END,
                pad_token_id=0,
            ),
        )
        ours = found(model, ids, beams=4, returns=3, max_tokens=6, length_penalty=1.0)
        assert [len(texts) for texts in ours] == [3, 3]
        for row, made in zip(theirs[:, 4:].tolist(), ours[0] + ours[1], strict=True):
            want = row[: row.index(END)] if END in row else row[: len(made.ids)]
            assert list(made.ids) == want


def test_draws_of_one_prompt_differ_and_come_best_first() -> None:
    model = blind(1)
    ids = torch.randint(6, 40, (2, 4))
    settings = {"beams": 1, "temperature": 3.0, "returns": 5, "max_tokens": 6, "seed": 3}
    first, second = found(model, ids, **settings)
    assert len(first) == len(second) == 5
    assert len({made.ids for made in first}) > 1
    assert first == sorted(first, key=lambda made: -made.logprob)
    assert found(model, ids, **settings) == [first, second]


@pytest.mark.parametrize("limit", [{"top_k": 3}, {"top_p": 0.6}])
def test_draws_stay_among_what_transformers_keeps(limit: dict[str, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 40) * 2
    scaled = logits / 0.7
    if "top_k" in limit:
        kept = TopKLogitsWarper(int(limit["top_k"]))(torch.zeros(1, 0), scaled)
    else:
        kept = TopPLogitsWarper(limit["top_p"])(torch.zeros(1, 0), scaled)
    want = kept.softmax(-1)[0]
    config = GenerationConfig(beams=1, temperature=0.7, **limit)  # type: ignore[arg-type]
    dice = torch.Generator().manual_seed(0)
    drawn = draw(logits.log_softmax(-1).expand(4000, -1), config, dice)
    shares = torch.bincount(drawn[:, 0], minlength=40) / 4000
    assert set(shares.nonzero()[:, 0].tolist()) <= set(want.nonzero()[:, 0].tolist())
    assert (shares - want).abs().max() < 0.04  # five deviations of a share of 4000 draws


def test_tokens_are_told_as_they_come() -> None:
    model = blind(2)
    ids = torch.randint(6, 40, (2, 4))
    told: list[tuple[int, int]] = []
    config = GenerationConfig(beams=1, max_tokens=8)
    latents, index = torch.zeros(2, 1, 2, 8), media_index(ids, MEDIA)
    made = search(
        model, latents, ids, index, END, config, on_token=lambda row, at: told.append((row, at))
    )
    for row, texts in enumerate(made):
        assert [token for at, token in told if at == row] == list(texts[0].ids)
    with pytest.raises(InputError, match="one by one"):
        search(model, latents, ids, index, END, GenerationConfig(), on_token=lambda row, at: None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_k": 5}, "give a temperature"),
        ({"top_p": 0.0}, "top_p is 0; must be above 0"),
        ({"returns": 4}, "4, but 3 beams end in no more"),
        ({"min_tokens": 21}, "min_tokens is 21, above max_tokens, 20"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"length_penalty": float("inf")}, "length_penalty is inf"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        GenerationConfig(**settings)  # type: ignore[arg-type]


def test_options_are_as_likely_as_a_pass_over_each_says() -> None:
    model = blind(5)
    ids = torch.randint(6, 40, (1, 4))
    options = [[7], [8, 9, 10], [11, END]]
    latents, index = torch.zeros(1, 1, 2, 8), media_index(ids, MEDIA)
    scores = score_options(model, latents, ids, index, options)
    for option, score in zip(options, scores, strict=True):
        whole = torch.tensor([[*ids[0].tolist(), *option]])
        with torch.no_grad():
            logprobs = model.lm.lm(whole).logits.log_softmax(-1)
        want = [float(logprobs[0, 3 + t, token]) for t, token in enumerate(option)]
        assert score == pytest.approx(want, abs=1e-5)
    # Among the tokens of a head the same differences, and nothing else than its tokens.
    head = model.lm.head_of(torch.tensor([END, 7, 8, 9, 10, 11]))
    with torch.no_grad():
        few = model.lm.lm(ids).logits[0, -1, head.ids].log_softmax(-1)
    [[seven], *_] = score_options(model, latents, ids, index, options, head=head)
    assert seven == pytest.approx(float(few[1]), abs=1e-5)
    with pytest.raises(InputError, match="never says"):
        score_options(model, latents, ids, index, [[12]], head=head)
    with pytest.raises(InputError, match="is empty"):
        score_options(model, latents, ids, index, [[7], []])


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_of_other_lengths_beside_it_change_nothing(beams: int) -> None:
    config = GenerationConfig(beams=beams, max_tokens=6, min_tokens=3)
    for seed in range(3):
        model = blind(seed)
        for name, parameter in model.trained():
            if name.endswith("gate"):
                torch.nn.init.constant_(parameter, 1.0)
        latents = model.resample(torch.randn(2, 2, 2, 2, 8))
        ids = torch.randint(6, 40, (2, 9))
        ids[0, 2] = ids[1, 6] = MEDIA  # of the second row, the last four are the prompt
        real = torch.ones_like(ids)
        ids[1, :5], real[1, :5] = 0, 0
        index = media_index(ids, MEDIA)
        together = generate(model, latents, ids, index, END, config, real, media_id=MEDIA)
        for row, begin in enumerate((0, 5)):
            one = slice(row, row + 1)
            alone, at = ids[one, begin:], index[one, begin:]
            [best] = generate(model, latents[one], alone, at, END, config, media_id=MEDIA)
            assert together[row].ids == best.ids
            assert together[row].logprob == pytest.approx(best.logprob, abs=1e-4)


@torch.no_grad()
def test_a_written_media_token_moves_on_to_the_next_media() -> None:
    moved = alone = past = 0
    for seed in range(6):
        model = blind(seed)
        for name, parameter in model.trained():
            if name.endswith("gate"):
                torch.nn.init.constant_(parameter, 1.0)
        head = model.lm.head_of(torch.tensor([END, MEDIA, *range(6, 12)]))
        features = torch.randn(2, 2, 2, 2, 8)
        ids = torch.randint(6, 40, (2, 6))
        ids[:, 1] = ids[1, 3] = MEDIA  # the rows have seen one media, and both
        config = GenerationConfig(beams=2, max_tokens=8)
        latents = model.resample(features).detach()
        index = media_index(ids, MEDIA)
        best = generate(model, latents, ids, index, END, config, head=head, media_id=MEDIA)
        for b, one in enumerate(best):
            wrote = one.ids.count(MEDIA)
            moved += wrote > 0
            alone += wrote > 0 and MEDIA not in best[1 - b].ids  # which leaves the other as it was
            past += 1 + b + wrote > 2  # and who has seen the last one goes on to see it
            end = [END] if len(one.ids) < config.max_tokens else []
            text = torch.tensor([[*ids[b].tolist(), *one.ids, *end]])
            # Without a cache, the index of the whole text says what each token sees.
            seen = media_index(text, MEDIA).clamp_max(1)
            hidden = model.lm(text, model.read(latents[b : b + 1], seen))
            logprobs = head(hidden[0, 5:-1]).log_softmax(-1)
            at = head.columns(text[0, 6:])
            total = logprobs.gather(1, at[:, None]).sum()
            assert one.logprob == pytest.approx(float(total), abs=1e-4)
    assert moved
    assert alone
    assert past
