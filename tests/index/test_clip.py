"""The vectors of a CLIP encoder are those of transformers' whole CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

from flamvid.index.clip import load_clip_embedder
from flamvid.index.encoder import FrameEncoder
from flamvid.weights.load import load_model
from tests.tiny import make_model

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPModel, CLIPTokenizerFast, Path]:
    """A whole CLIP of random weights, and a model's TOML that has its encoder."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[])
    end = vocabulary["<|endoftext|>"]
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **SMALL,
                "vocab_size": len(words),
                "max_position_embeddings": 16,
                "bos_token_id": end - 1,
                "eos_token_id": end,
                "pad_token_id": end,
            },
            vision_config={**SMALL, "image_size": 64, "patch_size": 16},
            projection_dim=24,
        )
    ).eval()
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    vision = f'encoder = "clip:{folder}/clip"\nsize = 64'
    make_model(folder, vision, features=32).rename(folder / "clip.toml")
    return model, tokenizer, folder


def test_pictures_and_texts(clip: tuple[CLIPModel, CLIPTokenizerFast, Path]) -> None:
    whole, tokenizer, folder = clip
    model = load_model(str(folder / "clip.toml"))
    encoder = FrameEncoder(model, batch=4)
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    features, vectors = encoder.encode(pixels)
    pictures = model.transform(pixels)
    with torch.no_grad():
        seen = whole.vision_model(pixel_values=pictures)
        torch.testing.assert_close(vectors, whole.visual_projection(seen.pooler_output))
        torch.testing.assert_close(features, model.flamingo.encode(pictures))
        words = tokenizer(["a dog", "a longer cat"], padding=True, return_tensors="pt")
        scores = whole(**words, pixel_values=pictures).logits_per_text / whole.logit_scale.exp()
    texts = encoder.embedder.text(["a dog", "a longer cat"])
    unit = torch.nn.functional.normalize(vectors, dim=1)
    torch.testing.assert_close(texts @ unit.T, scores, atol=1e-5, rtol=1e-4)


def test_long_texts_are_cut(clip: tuple[CLIPModel, CLIPTokenizerFast, Path]) -> None:
    model = load_model(str(clip[2] / "clip.toml"))
    embedder = load_clip_embedder(model)
    assert embedder is not None
    assert embedder.text(["dog " * 50]).shape == (1, 24)


def test_a_lone_vision_tower_reads_no_text(
    clip: tuple[CLIPModel, CLIPTokenizerFast, Path],
) -> None:
    model = load_model(str(clip[2] / "clip.toml"))
    config = clip[2] / "clip" / "config.json"
    kept = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(kept), "model_type": "clip_vision_model"}))
        assert load_clip_embedder(model) is None
    finally:
        config.write_text(kept)
