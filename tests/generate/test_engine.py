"""Search against transformers' own `generate` on a tiny language model."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig as HfConfig
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.errors import InputError
from flamvid.generate.engine import GenerationConfig, generate
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


def test_drawn_tokens_follow_the_probabilities_of_the_model() -> None:
    model = blind(3)
    ids = torch.randint(6, 40, (1, 4))
    with torch.no_grad():
        expected = (model.lm.lm(ids).logits[0, -1] / 2.0).softmax(-1)

    def draw(seed: int) -> int:
        config = GenerationConfig(beams=1, max_tokens=1, temperature=2.0, seed=seed)
        [best] = generate(model, torch.randn(1, 1, 2, 8), ids, media_index(ids, MEDIA), END, config)
        return best.ids[0] if best.ids else END

    drawn = torch.bincount(torch.tensor([draw(seed) for seed in range(400)]), minlength=40)
    # Three deviations of a share of 400 draws are 0.075 at most.
    assert (drawn / 400 - expected).abs().max() < 0.09
    assert draw(7) == draw(7)


@torch.no_grad()
def test_a_written_media_token_moves_on_to_the_next_media() -> None:
    moved = 0
    for seed in range(6):
        model = blind(seed)
        for name, parameter in model.trained():
            if name.endswith("gate"):
                torch.nn.init.constant_(parameter, 1.0)
        head = model.lm.head_of(torch.tensor([END, MEDIA, *range(6, 12)]))
        features = torch.randn(2, 3, 2, 2, 8)
        ids = torch.randint(6, 40, (2, 6))
        ids[:, 1] = ids[1, 3] = MEDIA  # the rows have seen one media and two
        config = GenerationConfig(beams=2, max_tokens=8)
        latents = model.resample(features).detach()
        index = media_index(ids, MEDIA)
        best = generate(model, latents, ids, index, END, config, head=head, media_id=MEDIA)
        for b, one in enumerate(best):
            moved += MEDIA in one.ids
            end = [END] if len(one.ids) < config.max_tokens else []
            text = torch.tensor([[*ids[b].tolist(), *one.ids, *end]])
            # Without a cache, the index of the whole text says what each token sees.
            seen = media_index(text, MEDIA).clamp_max(2)
            hidden = model.lm(text, model.read(latents[b : b + 1], seen))
            logprobs = head(hidden[0, 5:-1]).log_softmax(-1)
            at = head.columns(text[0, 6:])
            total = logprobs.gather(1, at[:, None]).sum()
            assert one.logprob == pytest.approx(float(total), abs=1e-4)
    assert moved
