"""A whole model that loads in a moment, random and blind to sense, and shards to train it on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flamvid.weights.adapter import save_adapter
from flamvid.weights.load import load_model

VISION = """
encoder = "timm:test_efficientnet"
weights = "{folder}/vision"
size = 64
"""
SPECIAL = ("<unk>", "<bos>", "<media>", "<end>")
WORDS = ("red", "green", "blue")
TOML = """
lm = "{folder}/lm"
adapter = "tiny.safetensors"

[tokens]
bos = "<bos>"
media = "<media>"
end = "<end>"

[vision]
{vision}

[resampler]
features = {features}
width = 16
heads = 2
head_width = 8
latents = 4
frames = 4

[xattn]
first = 1
heads = 2
head_width = 8
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the few words that `caption` uses, as SmolLM's tokenizer does it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {caption(w, n)}" for w in WORDS for n in range(4)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def make_model(folder: Path, vision: str = VISION, features: int = 256) -> Path:
    """The path of a model's TOML: a random LM and encoder, and an adapter whose gates are open.

    vision: another encoder's table, whose features are `features` wide and whose weights exist.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "lm")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.4,  # a wide spread, or all it writes is one token over and over
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    if vision == VISION:
        (folder / "vision").mkdir()
        encoder = timm.create_model("test_efficientnet", pretrained=False)
        save_file(encoder.state_dict(), folder / "vision" / "model.safetensors")
    toml = folder / "tiny.toml"
    seen = vision.format(folder=folder)
    toml.write_text(TOML.format(folder=folder, vision=seen, features=features))

    model = load_model(str(toml), trained=False)
    for name, parameter in model.flamingo.trained():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 1.0)
        elif "xattn" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)
    save_adapter(folder / "tiny.safetensors", dict(model.flamingo.trained()), {})
    return toml


def caption(word: str, number: int) -> str:
    """One of the four captions of a picture in this colour."""
    return (f"a {word} wall", f"{word} paint", f"the wall is {word}", f"a {word} a {word}")[number]


def picture(rgb: Sequence[int], size: int = 16) -> np.ndarray:
    """A square of one colour."""
    return np.full((size, size, 3), rgb, np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    """A lossless webp file, as the shards hold."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "webp", lossless=True)
    return data.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_colours(path: Path, count: int, frames: int, seed: int) -> Path:
    """A shard of `count` media, each of one colour, with captions that name it."""
    rng = np.random.default_rng(seed)
    members = []
    for i in range(count):
        pixels = picture(np.eye(3, dtype=int)[i % 3] * int(rng.integers(100, 256)))
        names = [f"m{i}.f{t:02}.webp" for t in range(frames)] if frames > 1 else [f"m{i}.webp"]
        members += [(name, encode(pixels)) for name in names]
        captions = {"captions": [caption(WORDS[i % 3], n) for n in range(4)]}
        members.append((f"m{i}.json", json.dumps(captions).encode()))
    return write_tar(path, members)
