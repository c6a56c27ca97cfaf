"""Eight bits, our own and torchao's, with and without the packages."""

from __future__ import annotations

import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from flamvid.errors import ConfigError, InputError
from flamvid.models.int8 import Int8Linear, int8_of, make_int8
from flamvid.models.linear import quicken
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from flamvid.weights.formats import build
from flamvid.weights.load import LoadedModel, load_model
from flamvid.weights.placement import int8_as_read, quantise


def logits(model: LoadedModel) -> torch.Tensor:
    flamingo = model.flamingo
    torch.manual_seed(0)
    features, ids = torch.randn(1, 1, 2, 4, 256), torch.tensor([[1, 2, 9, 30, 31]])
    index = torch.tensor([[-1, 0, 0, 0, 0]], dtype=torch.int32)
    with torch.no_grad():
        out: torch.Tensor = flamingo(features, ids, index)
    return out


@pytest.fixture(autouse=True)
def hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers hosts the tiny Llama, as it does every other language model."""
    monkeypatch.setattr("flamvid.models.lm.read_llama_config", lambda folder: None)


def far(model: LoadedModel, tiny: Path) -> float:
    """How far its logits are from those of float32, of the largest."""
    plain = logits(load_model(str(tiny)))
    return float((logits(model) - plain).abs().max() / plain.abs().max())


def test_int8_is_near_and_is_not_saved(tiny: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny), dtype="int8")
    assert 0 < far(model, tiny) < 0.05
    layer = model.flamingo.lm.lm.model.layers[0]
    assert isinstance(layer.mlp.up_proj, Int8Linear)
    assert isinstance(model.flamingo.lm.head, Int8Linear)
    with pytest.raises(ConfigError, match="int8, which is not saved; load it as float32"):
        model.flamingo.save_pretrained(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_any_language_model_can_be_int8(rows: int) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99}
    for lm in (
        GPTNeoXForCausalLM(GPTNeoXConfig(**size, intermediate_size=96)),
        OPTForCausalLM(OPTConfig(**size, ffn_dim=96, word_embed_proj_dim=64)),
        MosaicForCausalLM(MosaicConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=99)),
    ):
        for parameter in lm.parameters():
            nn.init.normal_(parameter, std=0.1)
        lm.eval()
        ids = torch.randint(3, 99, (rows, 1))
        wanted = lm(ids).logits
        quicken(lm)
        torch.testing.assert_close(lm(ids).logits, wanted, atol=1e-5, rtol=1e-5)
        make_int8(lm)
        assert not any(isinstance(module, nn.Linear) for module in lm.modules())
        assert 0 < (lm(ids).logits - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_int8_is_made_of_each_weight_as_it_is_read(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide: list[weakref.ref[torch.Tensor]] = []

    def spy(layer: nn.Linear) -> nn.Module | None:
        assert layer.weight.dtype == torch.float32
        assert not any(ref() is not None for ref in wide)  # none before it is still wide
        wide.append(weakref.ref(layer.weight))
        return int8_of(layer)

    plain = load_model(str(tiny))
    quantise(plain.flamingo, own=True)
    monkeypatch.setattr("flamvid.weights.placement.int8_of", spy)
    model = load_model(str(tiny), dtype="int8")
    layers = model.flamingo.lm.lm.model.layers
    assert len(wide) == 7 * len(layers)
    assert torch.equal(logits(model), logits(plain))
    assert not hasattr(model.flamingo.lm.lm.config, "quantization_config")


def test_torchao_where_it_is_more_than_a_cpu(tiny: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.quantization")
    model = load_model(str(tiny))
    quantise(model.flamingo, own=False)
    assert 0 < far(model, tiny) < 0.05
    weight = model.flamingo.lm.lm.model.layers[0].mlp.up_proj.weight
    assert weight.qdata.dtype == torch.int8
    assert model.flamingo.lm.head.weight.dtype == torch.float32
    # made of each weight as it is read, it is the same
    with int8_as_read(own=False):
        flamingo, _ = build(model.config, torch.float32, torch.device("cpu"), own=False)
    read = flamingo.lm.lm.model.layers[0].mlp.up_proj.weight
    assert torch.equal(read.qdata, weight.qdata)
    assert flamingo.lm.head.weight.dtype == torch.float32


def test_without_the_packages(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs torchao .* pip install 'flamvid\[int8\]'"):
        load_model(str(tiny), dtype="int8", device_map="auto")
    load_model(str(tiny), dtype="int8")
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    with pytest.raises(InputError, match=r"needs accelerate, .* pip install 'flamvid\[large\]'"):
        load_model(str(tiny), device_map="auto")
