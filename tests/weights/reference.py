"""OpenFlamingo's wrapper re-stated line by line, to make parity folders of any shape.

After mlfoundations/open_flamingo 655f693: helpers.py (PerceiverResampler, MaskedCrossAttention,
GatedCrossAttentionBlock), flamingo_lm.py and flamingo.py, over transformers' own LM and CLIP.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, einsum, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, PreTrainedModel

IMAGE, EOC, PAD, VOCAB = 58, 57, 59, 60
Heads = tuple[int, int]
# where each kind of language model has its layers, and its embeddings in a checkpoint
OPT = ("model.decoder.layers", ("lang_encoder.model.decoder.embed_tokens.weight",))
LLAMA = ("model.layers", ("lang_encoder.model.embed_tokens.weight",))
NEOX = ("gpt_neox.layers", ("lang_encoder.gpt_neox.embed_in.weight", "lang_encoder.lm_head.weight"))
MPT = ("transformer.blocks", ("lang_encoder.transformer.wte.weight",))


def feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, 4 * dim, bias=False),
        nn.GELU(),
        nn.Linear(4 * dim, dim, bias=False),
    )


class PerceiverAttention(nn.Module):
    def __init__(self, dim: int, heads: Heads) -> None:
        super().__init__()
        self.heads, inner = heads[0], heads[0] * heads[1]
        self.scale = heads[1] ** -0.5
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm_media(x), self.norm_latents(latents)
        q = split(self.to_q(latents), self.heads) * self.scale
        k, v = self.to_kv(torch.cat((x, latents), dim=-2)).chunk(2, dim=-1)
        sim = einsum("...id,...jd->...ij", q, split(k, self.heads))
        attn = (sim - sim.amax(dim=-1, keepdim=True)).softmax(dim=-1)
        return self.to_out(merge(einsum("...ij,...jd->...id", attn, split(v, self.heads))))


class Perceiver(nn.Module):
    def __init__(self, dim: int, depth: int, heads: Heads, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads), feed_forward(dim)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:  # b T (F v) D
        latents = self.latents.expand(*x.shape[:2], -1, -1)
        for attn, ff in self.layers:
            latents = attn(x, latents) + latents
            latents = ff(latents) + latents
        return self.norm(latents)


class MaskedCrossAttention(nn.Module):
    def __init__(self, dim: int, dim_visual: int) -> None:
        super().__init__()
        self.heads, inner, self.scale = 8, 512, 64**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim_visual, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, media: Tensor, locations: Tensor, cached: bool) -> Tensor:
        images, n = media.shape[1:3]
        q = split(self.to_q(self.norm(x)), self.heads) * self.scale
        k, v = self.to_kv(media.flatten(1, 2)).chunk(2, dim=-1)
        sim = einsum("...id,...jd->...ij", q, split(k, self.heads))
        if cached:  # the last place of the media, for every token
            text_time = locations.count_nonzero(dim=1)[:, None].expand(x.shape[:2])
        else:
            text_time = locations.cumsum(dim=-1)
        media_time = torch.arange(images).repeat_interleave(n) + 1
        mask = text_time[:, None, :, None] == media_time
        sim = sim.masked_fill(~mask, -torch.finfo(sim.dtype).max)
        attn = (sim - sim.amax(dim=-1, keepdim=True)).softmax(dim=-1)
        attn = attn.masked_fill((text_time == 0)[:, None, :, None], 0.0)
        return self.to_out(merge(einsum("...ij,...jd->...id", attn, split(v, self.heads))))


class GatedCrossAttentionBlock(nn.Module):
    def __init__(self, dim: int, dim_visual: int) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(dim, dim_visual)
        self.attn_gate = nn.Parameter(torch.randn(1))
        self.ff = feed_forward(dim)
        self.ff_gate = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor, media: Tensor, locations: Tensor, cached: bool) -> Tensor:
        x = self.attn(x, media, locations, cached) * self.attn_gate.tanh() + x
        return self.ff(x) * self.ff_gate.tanh() + x


class FlamingoLayer(nn.Module):
    def __init__(self, block: GatedCrossAttentionBlock | None, decoder_layer: nn.Module) -> None:
        super().__init__()
        self.gated_cross_attn_layer, self.decoder_layer = block, decoder_layer
        self.vis_x: Tensor | None = None
        self.media_locations: Tensor | None = None
        self.use_cached_media = False

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.gated_cross_attn_layer is not None:
            hidden_states = self.gated_cross_attn_layer(
                hidden_states, self.vis_x, self.media_locations, self.use_cached_media
            )
        return self.decoder_layer(hidden_states, *args, **kwargs)


class Reference(nn.Module):
    """Their Flamingo: a CLIP tower, a perceiver, an LM whose layers are wrapped."""

    def __init__(
        self, lm: PreTrainedModel, layers: str, every: int, heads: Heads, width: int = 24
    ) -> None:
        super().__init__()
        clip = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=28,
            patch_size=7,
        )
        self.vision_encoder = CLIPVisionModel(clip)
        self.perceiver = Perceiver(width, 2, heads, 5)
        self.lang_encoder, self.path, dim = lm, layers, lm.config.hidden_size
        wrapped = nn.ModuleList(
            FlamingoLayer(GatedCrossAttentionBlock(dim, width) if (i + 1) % every == 0 else None, d)
            for i, d in enumerate(lm.get_submodule(layers))
        )
        parent, _, leaf = layers.rpartition(".")
        setattr(lm.get_submodule(parent), leaf, wrapped)

    @torch.no_grad()
    def forward(self, vision_x: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        self.condition(vision_x)
        return self.step(ids, attention_mask=mask, use_cache=False).logits

    def condition(self, vision_x: Tensor) -> None:
        b, T, F = vision_x.shape[:3]
        seen = self.vision_encoder(pixel_values=vision_x.flatten(0, 2)).last_hidden_state[:, 1:]
        media = self.perceiver(seen.unflatten(0, (b, T, F)).flatten(2, 3))
        for layer in self.lang_encoder.get_submodule(self.path):
            layer.vis_x, layer.media_locations = media, None

    def step(self, ids: Tensor, **inputs: Any) -> Any:
        """One call of FlamingoLMMixin.forward while media are cached."""
        locations = ids == IMAGE
        for layer in self.lang_encoder.get_submodule(self.path):
            layer.use_cached_media = layer.media_locations is not None and not locations.any()
            if not layer.use_cached_media:
                layer.media_locations = locations
        return self.lang_encoder(input_ids=ids, **inputs)

    @torch.no_grad()
    def greedy(self, vision_x: Tensor, ids: Tensor, tokens: int) -> Tensor:
        """What the LM's own `generate` does with cached keys: one token a step."""
        self.condition(vision_x)
        step, cache = ids, DynamicCache(config=self.lang_encoder.config)
        takes = inspect.signature(self.lang_encoder.forward).parameters
        name = "cache" if "cache" in takes else "past_key_values"
        for _ in range(tokens):
            mask = torch.ones_like(ids)
            out = self.step(step, attention_mask=mask, use_cache=True, **{name: cache})
            step = out.logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, step], dim=1)
            if int(step) == EOC:
                break
        return ids

    def checkpoint(self, embeddings: tuple[str, ...]) -> dict[str, Tensor]:
        """What released files hold: trainables and embeddings."""
        return {
            name: tensor.clone()
            for name, tensor in self.state_dict().items()
            if name.startswith("perceiver.")
            or ".gated_cross_attn_layer." in name
            or name in embeddings
        }


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(-3, -2).flatten(-2)


def write_folder(
    folder: Path,
    lm: PreTrainedModel,
    layers: str,
    embeddings: tuple[str, ...],
    *,
    every: int = 1,
    heads: Heads = (8, 64),
    torch_file: bool = False,
    rename: Callable[[str], str] = str,
    loud: float = 1.0,
) -> Path:
    """A folder as those of shared/parity, its checkpoint's names passed through `rename`.

    loud: what the row of `<image>` in the head is multiplied by.
    """
    for parameter in lm.parameters():  # larger than as initialised, or logits say little
        nn.init.normal_(parameter, std=0.2)
    if loud != 1:
        with torch.no_grad():
            lm.get_output_embeddings().weight[IMAGE] *= loud
    lm.save_pretrained(folder / "lm")
    model = Reference(lm, layers, every, heads).eval()
    model.vision_encoder.save_pretrained(folder / "clip")
    tensors = {rename(n): t for n, t in model.checkpoint(embeddings).items()}
    if torch_file:
        torch.save({"epoch": 3, "model_state_dict": tensors}, folder / "checkpoint.pt")
    else:
        save_file(tensors, folder / "checkpoint.safetensors")

    def text(*parts: int | Tensor) -> Tensor:
        return torch.cat([torch.tensor([p]) if isinstance(p, int) else p for p in parts])[None]

    def words(n: int) -> Tensor:
        return torch.randint(3, EOC, (n,))

    prompts = {
        "one_image": text(IMAGE, words(5)),
        "text_before_first": text(words(4), IMAGE, words(4)),
        "three_images": text(IMAGE, words(3), EOC, IMAGE, words(4), EOC, IMAGE, words(2)),
    }
    cases: dict[str, Tensor] = {}
    for name, ids in prompts.items():
        pixels = torch.randn(1, int((ids == IMAGE).sum()), 1, 3, 28, 28)
        cases |= case(name, model, ids, torch.ones_like(ids), pixels)
        cases[f"{name}.generated"] = model.greedy(pixels, ids, 6)
    ids = torch.cat(
        [text(IMAGE, words(3), IMAGE, words(4)), text(*[PAD] * 3, IMAGE, words(2), IMAGE, words(2))]
    )
    mask = (ids != PAD).long()
    cases |= case("left_padded_batch", model, ids, mask, torch.randn(2, 2, 1, 3, 28, 28))
    save_file(cases, folder / "cases.safetensors")
    meta = {"cross_attn_every_n_layers": every, "image_token_id": IMAGE, "eoc_token_id": EOC}
    meta |= {"perceiver": {"dim_head": heads[1]}, "max_new_tokens": 6}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def case(name: str, model: Reference, ids: Tensor, mask: Tensor, pixels: Tensor) -> dict:
    logits = model(pixels, ids, mask)
    held = {"input_ids": ids, "attention_mask": mask, "pixels": pixels, "logits": logits}
    return {f"{name}.{key}": value for key, value in held.items()}
