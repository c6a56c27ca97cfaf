"""The whole model on tiny random parts, against transformers' own language model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import media_index

MEDIA = 5
VOCAB = 64


class FakeVision(nn.Module):
    width = 24

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, : 9 * 24].reshape(-1, 9, 24)


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
    )
    return LlamaForCausalLM(config)


def neox() -> PreTrainedModel:
    config = GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=VOCAB,
    )
    return GPTNeoXForCausalLM(config)


def opt() -> PreTrainedModel:
    config = OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=VOCAB,
        word_embed_proj_dim=32,
    )
    return OPTForCausalLM(config)


def mpt() -> PreTrainedModel:
    return MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=VOCAB))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=VOCAB))


HOSTS = {f.__name__: f for f in (llama, neox, opt, mpt, gpt2)}


def tiny(host: str = "llama", gates: float = 0.0) -> Flamingo:
    torch.manual_seed(0)
    resampler = PerceiverResampler(
        ResamplerConfig(features=24, width=16, heads=2, head_width=8, latents=3, frames=4)
    )
    model = Flamingo(
        FakeVision(), resampler, HOSTS[host](), XattnConfig(first=1, every=2, heads=2, head_width=8)
    )
    for name, parameter in model.trained():
        if name.endswith("gate"):
            nn.init.constant_(parameter, gates)
    return model.eval()


def example(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B,2,4,9,24], ids [B,10] with two media tokens each, and the media index."""
    torch.manual_seed(1)
    ids = torch.randint(8, VOCAB, (batch, 10))
    ids[:, 2] = MEDIA
    ids[0, 5] = MEDIA
    ids[1:, 7] = MEDIA
    return torch.randn(batch, 2, 4, 9, 24), ids, media_index(ids, MEDIA)


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_step_zero_equals_the_frozen_lm_bit_for_bit(host: str) -> None:
    model = tiny(host)
    features, ids, index = example()
    assert torch.equal(model(features, ids, index), model.lm.lm(ids).logits)


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_open_gates_let_the_host_see(host: str) -> None:
    model = tiny(host, gates=0.5)
    features, ids, index = example()
    seen = model(features, ids, index)
    assert not torch.allclose(seen, model.lm.lm(ids).logits, atol=1e-3)
    assert not torch.allclose(seen, model(features.flip(1), ids, index), atol=1e-4)


@pytest.mark.parametrize("host", ["llama", "neox", "opt"])
@torch.no_grad()
def test_left_padding_changes_nothing(host: str) -> None:
    model = tiny(host, gates=0.5)
    features, ids, index = example(1)
    alone = model(features, ids, index)
    padded = torch.cat([torch.full((1, 3), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones(1, 10)], dim=1).long()
    batch = model(features, padded, media_index(padded, MEDIA), mask)
    torch.testing.assert_close(batch[:, 3:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_decoding_equals_the_whole_text() -> None:
    model = tiny(gates=0.5)
    features, ids, index = example()
    whole = model(features, ids, index)
    latents = model.resample(features)
    cache = DynamicCache(config=model.lm.lm.config)
    parts = [
        model.lm.head(model.lm(ids[:, a:b], model.read(latents, index[:, a:b]), None, cache))
        for a, b in ((0, 4), (4, 5), (5, 10))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_threads_get_what_each_would_get_alone() -> None:
    model = tiny(gates=0.5)
    features, ids, index = example()
    others = [torch.randn_like(features) for _ in range(8)]
    alone = [model(f, ids, index) for f in others]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda f: _no_grad(model, f, ids, index), others * 4))
    for i, logits in enumerate(together):
        assert torch.equal(logits, alone[i % 8])


@torch.no_grad()
def _no_grad(model: Flamingo, *inputs: Tensor) -> Tensor:
    return model(*inputs)


def test_only_the_new_parts_train_and_nothing_below_the_first_is_kept() -> None:
    model = tiny(gates=0.5).train()
    features, ids, index = example()
    model(features, ids, index).sum().backward()
    trained = dict(model.trained())
    assert all(p.grad is not None for p in trained.values())
    assert not any(p.requires_grad for p in model.lm.lm.parameters())
    assert not model.lm.lm.training


@torch.no_grad()
def test_a_short_clip_in_a_padded_batch_is_as_alone() -> None:
    for frames in (3, 7):  # within the trained time embeddings, and interpolated
        model = tiny()
        long, short = torch.randn(1, frames, 9, 24), torch.randn(1, 2, 9, 24)
        padded = torch.cat([long, nn.functional.pad(short, (0, 0, 0, 0, 0, frames - 2))])
        both = model.resampler(padded, torch.tensor([frames, 2]))
        torch.testing.assert_close(both[1:], model.resampler(short), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(both[:1], model.resampler(long), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_by_its_own_layers(how: Callable[[Flamingo], Flamingo], after: bool) -> None:
    sizes = ResamplerConfig(features=24, width=16, heads=2, head_width=8, latents=3)
    xattn = XattnConfig(heads=2, head_width=8, after=after)
    model = Flamingo(FakeVision(), PerceiverResampler(sizes), llama(), xattn).eval()  # type: ignore[arg-type]
    for name, parameter in model.trained():
        if name.endswith("gate"):
            parameter.fill_(0.7)
    ids = torch.tensor([[MEDIA, 7, 8, 9]])
    media = torch.randn(1, 1, 1, 9, 24)
    index = media_index(ids, MEDIA)
    before = model(media, ids, index)
    other = how(model)
    assert torch.equal(other(media, ids, index), before)
    for name, parameter in other.trained():
        if name.endswith("gate"):
            parameter.fill_(0.1)
    assert torch.equal(model(media, ids, index), before)
    assert not torch.allclose(other(media, ids, index), before, atol=1e-3)
