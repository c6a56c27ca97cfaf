"""MPT-1B's architecture against what is the same in transformers' MPT, and with itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache, MptConfig, MptForCausalLM

from flamvid.errors import ConfigError
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM

SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 50}
NAMES = {"ln_1": "norm_1", "ln_2": "norm_2", "ln_f": "norm_f"}
NAMES |= {"mlp.mlp_up": "ffn.up_proj", "mlp.mlp_down": "ffn.down_proj"}


def make(**changes: object) -> MosaicForCausalLM:
    torch.manual_seed(0)
    model = MosaicForCausalLM(MosaicConfig(**SIZES | changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return ids, mask


@pytest.mark.parametrize("width", [32, 64])  # with heads of 8, and of 16, which kernels take
@torch.no_grad()
def test_without_the_query_and_key_norms_it_is_transformers_mpt(width: int) -> None:
    ours = make(d_model=width, attn_qk_ln=False, attn_clip_qkv=0.7)
    config = MptConfig(**SIZES | {"d_model": width}, attn_config={"clip_qkv": 0.7})
    theirs = MptForCausalLM(config).eval()
    tensors = {}
    for name, tensor in ours.state_dict().items():
        for mine, other in NAMES.items():
            name = name.replace(mine, other)
        tensors[name] = tensor
    theirs.load_state_dict(tensors)
    ids, mask = padded()
    logits, wanted = (m(ids, attention_mask=mask).logits[mask == 1] for m in (ours, theirs))
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_may_lie_anyhow_and_be_of_all_rows() -> None:
    model = make(d_model=64)
    ids, mask = padded()
    want = model(ids, attention_mask=mask).logits
    assert torch.equal(model(ids, attention_mask=mask.T.contiguous().T).logits, want)
    all_real = model(ids, attention_mask=torch.ones(1, 9)).logits
    torch.testing.assert_close(all_real, model(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_and_padding_change_nothing() -> None:
    model = make()
    ids, mask = padded()
    whole = model(ids, attention_mask=mask).logits
    alone = model(ids[1:, 4:]).logits
    torch.testing.assert_close(whole[1:, 4:], alone, atol=1e-5, rtol=1e-5)
    cache = DynamicCache(config=model.config)
    parts = [
        model(ids[:, a:b], attention_mask=mask[:, :b], past_key_values=cache).logits
        for a, b in ((0, 5), (5, 6), (6, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, 1)[mask == 1], whole[mask == 1])


@pytest.mark.parametrize("change", [{"alibi": False}, {"logit_scale": 0.5}])
def test_what_is_not_mpt_1b_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="only MPT-1B's"):
        make(**change)


def test_the_head_is_the_embeddings_also_when_resized() -> None:
    model = make()
    model.resize_token_embeddings(53, mean_resizing=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model(torch.tensor([[52]])).logits.shape == (1, 1, 53)
