"""A tiny OpenFlamingo as its author left it, and models compared tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.models.flamingo import Flamingo
from flamvid.models.pretrained import _tensors
from flamvid.weights.formats import build
from flamvid.weights.source import source_config
from tests.tiny import make_tokenizer
from tests.weights.reference import LLAMA, write_folder

TOML = """
format = "open_flamingo"
lm = "{0}/lm"
adapter = "checkpoint.safetensors"
licence = "MIT"
frames = 1

[tokens]
bos = "<bos>"
media = "<image>"
end = "<|endofchunk|>"
added = ["<|endofchunk|>", "<image>"]

[prompt]
caption = "{{media}}Output:"
question = "{{media}}Question:{{question}} Short answer:"

[vision]
encoder = "clip:{0}/clip"
size = 28
resize = "crop"

[resampler]
features = 24
width = 24
frames = 0
project = false
activation = "gelu"

[xattn]
activation = "gelu"
"""


def release(folder: Path) -> Path:
    """The folder of a tiny OpenFlamingo with a tokenizer, and its TOML."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=2,
        vocab_size=len(tokenizer) + 2,
    )
    write_folder(folder, LlamaForCausalLM(config), *LLAMA, every=2)
    tokenizer.save_pretrained(folder / "lm")
    (folder / "tiny.toml").write_text(TOML.format(folder))
    return folder


def words(captioner: Any, picture: Path) -> tuple[str, str]:
    [caption] = captioner.caption(picture, max_tokens=6)
    return caption.text, captioner.ask(picture, "what?", max_tokens=6).text


def same(one: Flamingo, other: Flamingo) -> bool:
    """Whether all tensors agree, by the names under which they are saved."""
    mine, theirs = (dict(_tensors(model)) for model in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in mine.items())


def built(source: Path) -> Flamingo:
    return build(source_config(str(source)), torch.float32, torch.device("cpu"))[0]
