"""Otter's layout, written from OpenFlamingo's re-statement, whose maths it shares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import MptConfig, MptForCausalLM

from flamvid.errors import WeightsError
from flamvid.ops import media_index
from flamvid.weights.load import load_model
from flamvid.weights.otter import load_otter
from tests.tiny import make_tokenizer
from tests.weights.reference import IMAGE, VOCAB, Reference
from tests.weights.test_parity import llama

LAYERS = {"llama": "model.layers", "mpt": "transformer.blocks"}


def otter_name(name: str) -> str:
    name = re.sub(r"^(perceiver\.layers\.\d+)\.0\.", r"\1.", name)
    name = re.sub(r"^(perceiver\.layers\.\d+)\.1\.", r"\1.feed_forward.", name)
    return name.replace("gated_cross_attn_layer.ff.", "gated_cross_attn_layer.feed_forward.")


def make(kind: str = "llama", frames: int = 0) -> tuple[Reference, dict[str, torch.Tensor]]:
    """The re-statement, and its tensors in Otter's names; with `frames`, of a video model."""
    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=4, n_layers=4, vocab_size=VOCAB)
    lm = llama() if kind == "llama" else MptForCausalLM(config)
    model = Reference(lm, LAYERS[kind], 2, (8, 64)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    tensors = {otter_name(n): t.clone() for n, t in model.state_dict().items()}
    if frames:
        tensors["perceiver.frame_embs"] = torch.randn(frames, 24)
    return model, tensors


def write(folder: Path, model: Reference, tensors: dict[str, torch.Tensor]) -> Path:
    """As their save_pretrained does; the text_config says less tokens than there are."""
    text = model.lang_encoder.config.to_dict() | {"vocab_size": VOCAB - 2}
    seen = model.vision_encoder.config.to_dict()
    config = {"model_type": "otter", "text_config": text, "vision_config": seen}
    (folder / "config.json").write_text(json.dumps(config | {"cross_attn_every_n_layers": 2}))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_pictures(tmp_path: Path, kind: str) -> None:
    reference, tensors = make(kind)
    model = load_otter(write(tmp_path, reference, tensors))
    ids = torch.tensor([[5, IMAGE, 6, 7, IMAGE, 8]])
    pixels = torch.randn(1, 2, 1, 3, 28, 28)
    features = model.encode(pixels.flatten(0, 2)).unflatten(0, (1, 2, 1))
    logits = model(features, ids, media_index(ids, IMAGE))
    wanted = reference(pixels, ids, torch.ones_like(ids))
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("frames", [0, 8])
def test_a_folder_says_what_it_is(tmp_path: Path, kind: str, frames: int) -> None:
    reference, tensors = make(kind, frames)
    write(tmp_path, reference, tensors)
    if frames:
        config = json.loads((tmp_path / "config.json").read_text()) | {"max_num_frames": frames}
        (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<s>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.flamingo.resampler.config.frames == frames
    assert model.config.frames == (16 if frames else 1)
    layout = "<image>User: red? GPT:<answer>"
    asked = model.prompts.tokenizer.decode(model.prompts.question("red?"))
    assert asked == (f"<s>{layout}" if kind == "llama" else layout)


@torch.no_grad()
def test_the_frames_of_a_video_are_one_media_in_order(tmp_path: Path) -> None:
    reference, tensors = make(frames=8)
    model = load_otter(write(tmp_path, reference, tensors))
    assert model.resampler.config.frames == 8
    features = torch.randn(1, 1, 3, 16, 24)
    # b T F v D: their frame_embs[:F] on every patch of a frame, then frames and patches in a row
    placed = features + tensors["perceiver.frame_embs"][:3, None]
    wanted = reference.perceiver(placed.flatten(2, 3))
    torch.testing.assert_close(model.resample(features), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "lost",
    [
        "perceiver.layers.1.feed_forward.3.weight",
        "lang_encoder.model.layers.3.gated_cross_attn_layer.feed_forward.1.weight",
    ],
)
def test_a_missing_tensor_is_named_as_they_name_it(tmp_path: Path, lost: str) -> None:
    reference, tensors = make()
    del tensors[lost]
    with pytest.raises(WeightsError, match=re.escape(f"missing [{lost}]")):
        load_otter(write(tmp_path, reference, tensors))


def test_what_is_no_otter(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_otter(tmp_path)
    reference, tensors = make()
    write(tmp_path, reference, tensors)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no text_config"):
        load_otter(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"model_type": "clip"}}')
    with pytest.raises(WeightsError, match="no causal language model is known"):
        load_otter(tmp_path)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"max_num_frames": 8}, r"missing \[perceiver\.frame_embs\]"),
        ({"max_num_frames": "8"}, r"max_num_frames is '8'; must be at least 1"),
        ({"cross_attn_every_n_layers": 1.5}, r"cross_attn_every_n_layers is 1\.5"),
    ],
)
def test_what_the_configuration_says_must_be_there(
    tmp_path: Path, said: dict[str, object], complaint: str
) -> None:
    write(tmp_path, *make())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_num_frames": 1}))
    load_otter(tmp_path)  # of pictures
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    with pytest.raises(WeightsError, match=complaint):
        load_otter(tmp_path)
