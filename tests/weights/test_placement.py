"""Eight bits and several devices, with the optional packages and without."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from flamvid.errors import InputError
from flamvid.weights.load import load_model


def logits(model: object) -> torch.Tensor:
    flamingo = model.flamingo  # type: ignore[attr-defined]
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


def test_int8_is_near_and_stores_less(tiny: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.quantization")
    model = load_model(str(tiny), dtype="int8")
    plain = logits(load_model(str(tiny)))
    difference = (logits(model) - plain).abs().max() / plain.abs().max()
    assert 0 < difference < 0.05
    weight = model.flamingo.lm.lm.model.layers[0].mlp.up_proj.weight
    assert weight.qdata.dtype == torch.int8
    assert model.flamingo.lm.head.weight.dtype == torch.float32


def test_auto_lays_the_model_out(tiny: Path) -> None:
    pytest.importorskip("accelerate")
    model = load_model(str(tiny), device_map="auto")
    assert torch.equal(logits(model), logits(load_model(str(tiny))))
    with pytest.raises(InputError, match="device_map is 'wide'; must be one of auto"):
        load_model(str(tiny), device_map="wide")


def test_without_the_packages(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchao", "torchao.quantization", "accelerate"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs torchao, .* pip install 'flamvid\[int8\]'"):
        load_model(str(tiny), dtype="int8")
    with pytest.raises(InputError, match=r"needs accelerate, .* pip install 'flamvid\[large\]'"):
        load_model(str(tiny), device_map="auto")
