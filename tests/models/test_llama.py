"""Our Llama against transformers' own, from the same files."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.errors import WeightsError
from flamvid.models import llama_file
from flamvid.models.cache import KeyValueCache
from flamvid.models.llama import Llama, read_llama_config
from flamvid.models.llama_file import load_llama, load_llama_int8
from flamvid.models.lm import LanguageModel, load_plain_lm

SHAPES = {
    "grouped": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "wide heads": {"num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True},
}


def theirs(folder: Path, **settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            **{
                "intermediate_size": 56,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "vocab_size": 50,
                "initializer_range": 0.3,
                "rope_theta": 1e5,
                **settings,
            },
        )
    )
    lm.save_pretrained(folder)
    return lm.eval()


def ours(folder: Path) -> Llama:
    config = read_llama_config(folder)
    assert config is not None
    return load_llama(folder, config, torch.float32)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path, shape: str) -> None:
    reference = theirs(tmp_path, **SHAPES[shape])
    lm = ours(tmp_path)
    ids = torch.randint(0, 50, (3, 11))
    hidden = lm.model(ids).last_hidden_state
    torch.testing.assert_close(lm.lm_head(hidden), reference(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_left_padding_is_not_seen(tmp_path: Path) -> None:
    reference, lm = theirs(tmp_path), LanguageModel(ours(tmp_path), {})
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    want = reference(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
    got = lm.head(lm(ids, attention_mask=mask))
    real = mask.bool()
    torch.testing.assert_close(got[real], want.logits[real], atol=1e-5, rtol=1e-5)
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_cached_steps_are_the_whole(tmp_path: Path, padded: bool) -> None:
    theirs(tmp_path)
    lm = LanguageModel(ours(tmp_path), {})
    # Past the first room of the buffers, so that they grow.
    ids = torch.randint(0, 50, (2, 80))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0 if padded else 1
    whole = lm(ids, attention_mask=mask if padded else None)
    cache = lm.new_cache()
    assert isinstance(cache, KeyValueCache)
    parts = []
    for a, b in ((0, 5), (5, 6), (6, 9), (9, 70), *((i, i + 1) for i in range(70, 80))):
        seen = mask[:, :b] if padded else None
        parts.append(lm(ids[:, a:b], attention_mask=seen, cache=cache))
        assert cache.get_seq_length() == b
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beams_take_each_others_past(tmp_path: Path) -> None:
    theirs(tmp_path)
    lm = LanguageModel(ours(tmp_path), {})
    ids = torch.randint(0, 50, (2, 6))
    cache = lm.new_cache()
    lm(ids, cache=cache)
    cache.batch_repeat_interleave(2)
    rows = torch.tensor([2, 0, 3, 1])  # rows 0 and 1 are beams of the first prompt
    cache.reorder_cache(rows)
    next_ids = torch.randint(0, 50, (4, 1))
    whole = torch.cat([ids.repeat_interleave(2, 0)[rows], next_ids], dim=1)
    got = lm(next_ids, cache=cache)
    torch.testing.assert_close(got[:, -1], lm(whole)[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["grouped", "untied"])
@torch.no_grad()
def test_int8_is_kept_beside_the_file_and_made_anew_with_it(tmp_path: Path, shape: str) -> None:
    reference = theirs(tmp_path, **{**SHAPES[shape], "intermediate_size": 64})
    config = read_llama_config(tmp_path)
    assert config is not None
    first = load_llama_int8(tmp_path, config)
    kept = tmp_path / "flamvid-int8.safetensors"
    written = kept.stat().st_mtime_ns
    again = load_llama_int8(tmp_path, config)
    assert kept.stat().st_mtime_ns == written
    ids = torch.randint(0, 50, (2, 9))
    want = reference(ids).logits.log_softmax(-1)
    for lm in (first, again):
        logprobs = lm.lm_head(lm.model(ids).last_hidden_state).log_softmax(-1)
        assert (logprobs - want).abs().mean() < 0.05
        assert (logprobs.argmax(-1) == want.argmax(-1)).float().mean() > 0.9
    # Rows of the head, which a vocabulary chooses, are rows of the whole.
    host = LanguageModel(again, {})
    hidden = host(ids)
    some = torch.tensor([3, 7, 20])
    torch.testing.assert_close(
        host.head_of(some)(hidden), host.head(hidden)[..., some], atol=0.3, rtol=0
    )
    # A broken file and another original are no obstacle.
    kept.write_bytes(b"broken")
    load_llama_int8(tmp_path, config)
    torch.manual_seed(9)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: torch.randn_like(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    other = load_llama_int8(tmp_path, config)
    assert not torch.equal(other.model.norm, first.model.norm)


def test_int8_on_a_disk_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a one refuses to write, and to remove even what is not there."""
    theirs(tmp_path, **{**SHAPES["grouped"], "intermediate_size": 64})
    config = read_llama_config(tmp_path)
    assert config is not None

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(llama_file, "save_file", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    assert load_llama_int8(tmp_path, config).config == config


def test_gradients_pass_through_it(tmp_path: Path) -> None:
    theirs(tmp_path)
    lm = LanguageModel(ours(tmp_path), {})
    ids = torch.randint(0, 50, (1, 4))
    assert not any(p.requires_grad for p in lm.lm.parameters())
    x = lm.body.embed_tokens(ids).requires_grad_()
    lm.body.embed_tokens = torch.nn.Identity()
    lm.body(x).last_hidden_state.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
    ],
)
def test_what_is_no_plain_llama_is_left_to_transformers(
    tmp_path: Path, change: dict[str, object]
) -> None:
    theirs(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert read_llama_config(tmp_path) is None
    assert read_llama_config(tmp_path / "nowhere") is None


def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    theirs(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    for change, told in (
        ({name: None}, f"lacks {name}"),
        ({name: torch.zeros(7, 32)}, rf"{name} has shape \(7, 32\), but its config.json says"),
        ({"model.layers.0.odd": torch.zeros(1)}, "model.layers.0.odd, which no Llama has"),
    ):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(changed, file)
        with pytest.raises(WeightsError, match=told):
            load_plain_lm(tmp_path, torch.float32)
    file.write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="is damaged"):
        load_plain_lm(tmp_path, torch.float32)
