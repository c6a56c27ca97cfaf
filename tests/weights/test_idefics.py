"""IDEFICS checkpoints, written by transformers, against transformers' own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from flamvid.errors import InputError, WeightsError
from flamvid.weights.idefics import load_idefics, one_hot_index


def theirs(alpha: str = "float", extra: int = 2, tied: bool = False) -> IdeficsForVisionText2Text:
    torch.manual_seed(0)
    config = IdeficsConfig(
        vocab_size=50,
        additional_vocab_size=extra,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=6,
        num_attention_heads=3,
        cross_layer_interval=3,
        qk_layer_norms=True,
        alpha_type=alpha,
        alpha_initializer="ones",
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        use_resampler=True,
        vision_config={
            "embed_dim": 20,
            "image_size": 28,
            "patch_size": 14,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 30,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 3,
            "resampler_n_heads": 2,
            "resampler_head_dim": 12,
            "qk_layer_norms_perceiver": True,
        },
    )
    model = IdeficsForVisionText2Text(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idefics")
    theirs().save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize(("alpha", "extra"), [("float", 2), ("vector", 3), ("float", 0)])
@torch.no_grad()
def test_logits_are_theirs(tmp_path: Path, alpha: str, extra: int) -> None:
    reference = theirs(alpha, extra)
    reference.save_pretrained(tmp_path)
    ours = load_idefics(tmp_path)
    ids = torch.randint(3, 50 + extra, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    pixels = torch.randn(2, 2, 3, 28, 28)
    seen = torch.zeros(2, 9, 2, dtype=torch.long)
    seen[0, 2:5, 0], seen[0, 5:, 1], seen[1, 4:, 0] = 1, 1, 1
    wanted = reference(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, image_attention_mask=seen
    ).logits
    features = ours.encode(pixels.flatten(0, 1)).unflatten(0, (2, 2))[:, :, None]
    logits = ours(features, ids, one_hot_index(seen), mask)
    torch.testing.assert_close(logits[mask == 1], wanted[mask == 1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_shards_load_straight_to_half_precision(saved: Path) -> None:
    model = load_idefics(saved, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm.lm.config.vocab_size == 52
    ids = torch.tensor([[51, 4, 5]])
    features = model.encode(torch.randn(1, 3, 28, 28).bfloat16())[None, None]
    assert model(features, ids, torch.zeros(1, 3, dtype=torch.int32)).isfinite().all()


@pytest.mark.parametrize(
    "lost",
    [
        "model.perceiver_resampler.blocks.1.0.v_proj.weight",
        "model.gated_cross_attn_layers.1.alpha_dense",
        "model.layers.2.mlp.up_proj.weight",
        "model.vision_model.encoder.layers.0.mlp.fc1.bias",
        "lm_head.weight",
        "lm_head.additional_fc.weight",
        "model.embed_tokens.additional_embedding.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, lost: str) -> None:
    theirs().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    tail = ".".join(lost.split(".")[-2:])
    with pytest.raises(WeightsError, match=rf"missing \[.*{tail}") as raised:
        load_idefics(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_shard_is_named(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    shard = sorted((tmp_path / "copy").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"lacks the shard {shard.name}"):
        load_idefics(tmp_path / "copy")


def test_what_is_not_idefics_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no IDEFICS checkpoint"):
        load_idefics(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(WeightsError, match="its model_type is 'llama'"):
        load_idefics(tmp_path)
    shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"qk_layer_norms": False}))
    with pytest.raises(WeightsError, match="qk_layer_norms False; both must be true"):
        load_idefics(tmp_path / "copy")


def test_a_token_that_sees_two_images_is_refused() -> None:
    with pytest.raises(InputError, match="the latest one alone"):
        one_hot_index(torch.ones(1, 2, 2, dtype=torch.long))
    mask = torch.tensor([[[0, 0], [0, 1], [1, 0]]])
    assert one_hot_index(mask).tolist() == [[-1, 1, 0]]


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("model.embed_tokens.additional_embedding.weight", torch.ones(2, 7), "of one width"),
        ("model.perceiver_resampler.blocks.0.0.v_proj.weight", torch.ones(24, 7), "has shape"),
        ("model.gated_cross_attn_layers.0.cross_attn.v_proj.weight", torch.ones(()), "has shape"),
    ],
)
def test_tensors_of_odd_shapes(
    tmp_path: Path, name: str, tensor: torch.Tensor, complaint: str
) -> None:
    theirs().save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    assert name in held
    save_file({**held, name: tensor}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=complaint) as raised:
        load_idefics(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "lie",
    [
        {"hidden_size": "wide"},
        {"vision_config": {"hidden_act": 3}},
        {"vision_config": {"image_size": []}},
        {"pad_token_id": 10**6},
    ],
)
def test_a_configuration_of_other_types(
    saved: Path, tmp_path: Path, lie: dict[str, object]
) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | lie))
    with pytest.raises(WeightsError) as raised:
        load_idefics(folder)
    assert "\n" not in str(raised.value)
