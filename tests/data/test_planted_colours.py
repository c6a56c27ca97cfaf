"""Pages whose images are listed in another order than their sentences: each must meet its own text.

A tiny model can only name the colours of held-out pages if every image stands where it belongs.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from flamvid.data.collate import Batch
from flamvid.data.mixture import Mixture
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.vision import TimmEncoder
from flamvid.ops import media_index
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus
from tests.tiny import WORDS, encode, picture

COLOURS = {name: encode(picture(rgb)) for name, rgb in
           zip(WORDS, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True)}  # fmt: skip


def write_pages(path: Path, count: int, seed: int, scrambled: bool = True) -> None:
    """Pages of MMC4, whose `matched_text_index` is an image's own sentence where `scrambled`."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        names = [rng.choice(WORDS) for _ in range(4)]
        images = [
            {"matched_text_index": at, "image_base64": base64.b64encode(COLOURS[name]).decode()}
            for at, name in enumerate(names)
        ]
        rng.shuffle(images)
        if not scrambled:  # as a reader would have them that takes images in the file's order
            for at, image in enumerate(images):
                image["matched_text_index"] = at
        lines.append(json.dumps({"text_list": names, "image_info": images}))
    path.write_text("\n".join(lines))


def make_flamingo(vocabulary: int) -> Flamingo:
    torch.manual_seed(0)
    lm = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=vocabulary,
    )
    resampler = ResamplerConfig(
        features=3, width=16, depth=1, heads=2, head_width=8, latents=2, frames=1
    )
    return Flamingo(
        TimmEncoder("test_efficientnet"),
        PerceiverResampler(resampler),
        LlamaForCausalLM(lm),
        XattnConfig(first=0, heads=2, head_width=8, ffw_ratio=2),
        lm_state="scratch",
    )


def logits_of(model: Flamingo, batch: Batch, prompts: PromptFormat) -> Tensor:
    """The colour of each picture is its only feature."""
    assert batch.frames is not None
    features = batch.frames.float().mean((-1, -2)).unsqueeze(-2) / 255
    index = media_index(batch.ids, prompts.media_id)
    out: Tensor = model(features, batch.ids, index, frame_counts_BM=batch.frame_counts)
    return out


def share_right(folder: Path, prompts: PromptFormat, scrambled: bool) -> float:
    """Of the colours of held-out pages, the share that is named right."""
    write_pages(folder / "train.jsonl", 200, 1, scrambled)
    write_pages(folder / "held-out.jsonl", 40, 2, scrambled)
    pages = corpus("interleaved", "train.jsonl", batch=16, next=0.0)
    held_out = corpus("interleaved", "held-out.jsonl", batch=40, next=0.0)
    model = make_flamingo(len(prompts.tokenizer)).train()
    optimizer = torch.optim.AdamW([p for _, p in model.trained()], lr=4e-3)
    for _, [batch] in zip(range(90), Mixture([pages], prompts, root=folder), strict=False):
        logits = logits_of(model, batch, prompts)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    [batch] = next(Mixture([held_out], prompts, root=folder, augment=False))
    with torch.no_grad():
        right = logits_of(model, batch, prompts).argmax(-1) == batch.targets
    words = (batch.targets >= 0) & (batch.targets != prompts.end_id)
    return float(right[words].float().mean())


def test_each_image_meets_its_own_text(tmp_path: Path, prompts: PromptFormat) -> None:
    assert share_right(tmp_path, prompts, scrambled=True) == 1.0


def test_images_in_the_order_of_the_file_would_not(tmp_path: Path, prompts: PromptFormat) -> None:
    share = share_right(tmp_path, prompts, scrambled=False)
    assert share < 0.8
