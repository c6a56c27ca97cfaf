"""OpenFlamingo's checkpoints: the trained part and the embeddings, over a public LM and CLIP.

Source: mlfoundations/open_flamingo 655f693, src/{flamingo,flamingo_lm,helpers}.py. Files hold
`perceiver.*`, `lang_encoder.<layers>.<i>.gated_cross_attn_layer.*` and the embeddings, under
whatever prefixes FSDP and DDP left; older ones repeat them as aliases of the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import WeightsError
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.lm import layers_path
from flamvid.models.resampler import ResamplerConfig
from flamvid.weights.foreign import (
    ModelParts,
    assemble_empty,
    count,
    fill,
    listed,
    sub_names,
    unwrap,
)

__all__ = [
    "Dialect",
    "build_open_flamingo",
    "layout",
    "main_names",
    "open_flamingo_tensors",
    "trained_names",
]

_LM = "lang_encoder."
_INSERTED = re.compile(
    r"lang_encoder\.(?:.*\.)?(\d+)\.gated_cross_attn_layer\."
    r"|lang_encoder\.gated_cross_attn_layers\.(\d+)\."
)
_XATTN_HEAD = 64  # the width of a head of the cross-attention, which no release changes
_MOST_ADDED = 8  # special tokens; a larger difference means another language model


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a release names the parts of a block: of the resampler, and of the cross-attention."""

    attention: str
    feed_forward: str
    xattn_feed_forward: str


OPEN_FLAMINGO = Dialect("0.", "1", "ff")


def build_open_flamingo(
    tensors: Mapping[str, Tensor],
    vision: VisionEncoder,
    lm: Any,
    parts: ModelParts,
    source: Path,
) -> Flamingo:
    """The released model over its frozen parts.

    tensors: from `open_flamingo_tensors`. The LM's embeddings get as many rows as the checkpoint
    has, for that is how the special tokens were added. source: names the file in errors.
    """
    tensors = main_names(tensors, lm)
    _fit_embeddings(tensors, lm, source)
    flamingo = assemble_empty(vision, lm, parts)
    names = trained_names(flamingo, parts[1], OPEN_FLAMINGO)
    held = {n.removeprefix(_LM) for n in tensors}
    names |= {f"lm.{n}": _LM + n for n, _ in lm.named_parameters() if n in held}
    parameters = dict(flamingo.trained())
    parameters |= {f"lm.{name}": p for name, p in lm.named_parameters()}
    fill(
        parameters,
        {ours: (theirs,) for ours, theirs in names.items()},
        tensors,
        source,
        spare=_spare(tensors, lm),
    )
    return flamingo


def open_flamingo_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors by bare names, without its frozen vision encoder."""
    return {n: t for n, t in unwrap(tensors).items() if not n.startswith("vision_encoder.")}


def layout(
    tensors: Mapping[str, Tensor],
    source: Path,
    head_width: int = 64,
    dialect: Dialect = OPEN_FLAMINGO,
    *,
    depth: int | None = None,
    every: int | None = None,
) -> ModelParts:
    """Sizes that a checkpoint tells by the shapes and names of its tensors.

    head_width, which no shape tells, is 64 in every release. depth, every: resampler layers, and
    decoder layers to each inserted one, where they are known: a checkpoint that lacks its last
    layers looks like one of a smaller model.
    """
    layers = sorted({int(m[1] or m[2]) for name in tensors if (m := _INSERTED.match(name))})
    queries = f"perceiver.layers.0.{dialect.attention}to_q.weight"
    latents, q = tensors.get("perceiver.latents"), tensors.get(queries)
    crossing = next((n for n in tensors if n.endswith("attn.to_q.weight")), "")
    asking = tensors.get(crossing)
    needed = {"perceiver.latents": latents, queries: q, "gated_cross_attn_layer": asking}
    if latents is None or q is None or asking is None or not layers:
        missing = [name for name, found in needed.items() if found is None]
        raise WeightsError(
            f"{source} is no OpenFlamingo checkpoint: missing {listed(missing)}; is it whole?"
        )
    for name, tensor, rows in (
        ("perceiver.latents", latents, 1),
        (queries, q, head_width),
        (crossing, asking, _XATTN_HEAD),
    ):
        if tensor.ndim != 2 or not len(tensor) or len(tensor) % rows:
            raise WeightsError(
                f"{source}: {name} has shape {tuple(tensor.shape)}; must be a matrix whose rows "
                f"are a multiple of {rows}; is it whole?"
            )
    found = count(tensors, r"perceiver\.layers\.(\d+)\.")
    if depth is not None and found != depth:
        raise WeightsError(
            f"{source} has {found} resampler layers (perceiver.layers.*), its model has {depth}; "
            "is it whole?"
        )
    frames = tensors.get("perceiver.frame_embs")
    L, width = latents.shape
    resampler = ResamplerConfig(
        features=width,
        width=width,
        depth=found,
        heads=len(q) // head_width,
        head_width=head_width,
        latents=L,
        frames=0 if frames is None else frames.shape[0],
        project=False,
        activation="gelu",
    )
    every = every or min((b - a for a, b in pairwise(layers)), default=layers[0] + 1)
    xattn = XattnConfig(
        first=every - 1,
        every=every,
        heads=len(asking) // _XATTN_HEAD,
        head_width=_XATTN_HEAD,
        activation="gelu",
    )
    return resampler, xattn


def main_names(tensors: Mapping[str, Tensor], lm: Any) -> dict[str, Tensor]:
    """Aliases by the one name, in this LM, of the tensor that they stand for."""
    path, head = layers_path(lm), _name_of(lm, lm.get_output_embeddings().weight)
    aliases = {
        # GPT-NeoX's head, which transformers calls as every other model's since 5.0
        f"{_LM}embed_out.weight": _LM + head,
        f"{_LM}gated_cross_attn_layers.": f"{_LM}{path}.{{}}.gated_cross_attn_layer.",
        f"{_LM}old_decoder_blocks.": f"{_LM}{path}.{{}}.",
    }
    out = {}
    for name, tensor in tensors.items():
        for alias, main in aliases.items():
            if name.startswith(alias):
                number, _, rest = name[len(alias) :].partition(".")
                name = main.format(number) + rest
        out[name.replace(".decoder_layer.", ".")] = tensor
    return out


def _fit_embeddings(tensors: Mapping[str, Tensor], lm: Any, source: Path) -> None:
    """Give the LM the checkpoint's number of tokens, if it is the right LM."""
    embedding = lm.get_input_embeddings().weight
    name = _LM + _name_of(lm, embedding)
    if name not in tensors:
        raise WeightsError(
            f"{source} lacks {name}, the embeddings of a {type(lm).__name__}; "
            "give the language model it was trained with"
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or shape[1] != embedding.shape[1]:
        raise WeightsError(
            f"{source}: {name} has shape {shape}, the language model wants "
            f"{tuple(embedding.shape)}; give the one it was trained with"
        )
    rows = shape[0]
    added = rows - embedding.shape[0]
    head = lm.get_output_embeddings().weight
    untrained = head is not embedding and _LM + _name_of(lm, head) not in tensors
    if untrained and lm.config.model_type == "gpt_neox":  # whose head is saved for its name
        raise WeightsError(f"{source} does not fit the model: missing [{_LM}embed_out.weight]")
    if added == 0:
        return
    # Tables of public models are rounded up, MPT's from 50277 to 50432; theirs are not.
    fewest = 0 if untrained else -max(_MOST_ADDED, embedding.shape[0] // 100)
    if not fewest <= added <= _MOST_ADDED:
        without = f" and no {_LM}{_name_of(lm, head)}" if untrained else ""
        raise WeightsError(
            f"{source} has {rows} tokens{without}, the language model has {embedding.shape[0]}; "
            "give the one it was trained with"
        )
    lm.resize_token_embeddings(rows, mean_resizing=False)
    if untrained:
        # The LLaMA release never trained its head, and left what it added to chance: a logit of 0
        # lets the tokens that the language model does know go first.
        with torch.no_grad():
            lm.get_output_embeddings().weight[-added:] = 0


def _name_of(lm: nn.Module, parameter: Tensor) -> str:
    return next(name for name, p in lm.named_parameters() if p is parameter)


def trained_names(flamingo: Flamingo, xattn: XattnConfig, dialect: Dialect) -> dict[str, str]:
    """Our names of what is trained to the released ones."""
    parts = ("norm_media", "norm_latents", "to_q", "to_kv", "to_out")
    block = {part: f"{dialect.attention}{part}" for part in parts} | {"ffw": dialect.feed_forward}
    theirs = {"latents": "perceiver.latents", "norm": "perceiver.norm"}
    theirs |= {"time.weight": "perceiver.frame_embs"}
    for i in range(flamingo.resampler.config.depth):
        theirs |= {
            f"blocks.{i}.{our}": f"perceiver.layers.{i}.{name}" for our, name in block.items()
        }
    names = sub_names(flamingo.resampler, "resampler.", theirs)

    inserted = {part: f"attn.{part}" for part in ("norm", "to_q", "to_kv", "to_out")}
    inserted |= {"ffw": dialect.xattn_feed_forward}
    inserted |= {"attn_gate": "attn_gate", "ffw_gate": "ff_gate"}
    lm = flamingo.lm.lm
    for slot, layer in enumerate(xattn.positions(lm.config.num_hidden_layers)):
        prefix = f"{_LM}{layers_path(lm)}.{layer}.gated_cross_attn_layer."
        theirs = {our: prefix + name for our, name in inserted.items()}
        names |= sub_names(flamingo.lm.inserted[slot], f"xattn.{slot}.", theirs)
    return names


def _spare(tensors: Mapping[str, Tensor], lm: nn.Module) -> set[str]:
    """A tied head, which some files repeat."""
    tied = {n for n, _ in lm.named_parameters(remove_duplicate=False)}
    return {n for n in tensors if n.removeprefix(_LM) in tied}
