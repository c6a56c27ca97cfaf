"""State dicts of lucidrains' flamingo-pytorch: FlamingoPaLM, without its picture encoder.

Source: lucidrains/flamingo-pytorch 10913ab. The picture encoder is whatever its user passed in, so
it is passed in here as well, and `img_encoder.*` is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flamvid.errors import WeightsError
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import CPU, frozen_of
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.palm import PalmConfig, PalmForCausalLM
from flamvid.models.resampler import ResamplerConfig
from flamvid.weights.foreign import ModelParts, assemble_empty, count, fill, sub_names

__all__ = ["build_flamingo_pytorch"]

_OURS = ("perceiver_resampler.", "video_frame_pos_emb")
_PARTS = ("norm_media", "norm_latents", "to_q", "to_kv", "to_out")


def build_flamingo_pytorch(
    tensors: Mapping[str, Tensor],
    vision: VisionEncoder,
    source: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Flamingo:
    """The model of a FlamingoPaLM's state dict over `vision`, whose width must be the LM's.

    Where it was made with max_video_frames, a picture gets the embedding of a first frame, which
    theirs gives to videos alone. More media than it has embeddings for are an InputError.
    """
    tensors = {n: t for n, t in tensors.items() if not n.startswith("img_encoder.")}
    inserted = {n for n in tensors if re.match(r"layers\.\d+\.1\.", n)}
    own = {n: t for n, t in tensors.items() if n in inserted or n.startswith(_OURS)}
    config, parts = _sizes(tensors, inserted, source)
    text = _text(tensors.keys() - own.keys())
    own_names = {text[n]: tensors[n] for n in text}
    lm = frozen_of(PalmForCausalLM, config, own_names, dtype, source, device)
    flamingo = assemble_empty(vision, lm, parts)
    names = {ours: (theirs,) for ours, theirs in _names(flamingo, parts[1]).items()}
    fill(dict(flamingo.trained()), names, own, source)
    return flamingo.eval()


def _sizes(
    tensors: Mapping[str, Tensor], inserted: set[str], source: Path
) -> tuple[PalmConfig, ModelParts]:
    """Sizes by the shapes of the tensors."""
    try:
        tokens, width = tensors["token_emb.weight"].shape
        depth = count(tensors, r"layers\.(\d+)\.0\.")
        queries = tensors["layers.0.0.fn.attn_out.weight"].shape[1]
        inner = tensors["layers.0.0.fn.ff_out.1.weight"].shape[1]
        # queries of all heads, one key, one value, and both halves of the SwiGLU
        fused = tensors["layers.0.0.fn.fused_attn_ff_proj.weight"].shape[0]
        head_width = (fused - queries - 2 * inner) // 2
        heads = queries // head_width
        latents = tensors["perceiver_resampler.latents"].shape[0]
        media = tensors["perceiver_resampler.media_pos_emb"].shape[0]
        every = min((n for n in _numbers(inserted) if n > 0), default=depth)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{source} is no state dict of a FlamingoPaLM: it has no {error}"
        ) from error
    frames = tensors.get("video_frame_pos_emb")
    resampler = ResamplerConfig(
        features=width,
        width=width,
        depth=count(tensors, r"perceiver_resampler\.layers\.(\d+)\."),
        heads=heads,
        head_width=head_width,
        latents=latents,
        frames=0 if frames is None else frames.shape[0],
        media=media,
        project=False,
        activation="gelu",
    )
    xattn = XattnConfig(
        every=every, heads=heads, head_width=head_width, activation="gelu", after=True
    )
    config = PalmConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        head_dim=head_width,
        vocab_size=tokens,
    )
    return config, (resampler, xattn)


def _numbers(names: set[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names}


def _text(names: set[str]) -> dict[str, str]:
    """Their names of the language model's tensors to those of `PalmForCausalLM`."""
    out = {}
    for name in names:
        # Norms have a bias that is always 0, rotations a table; the head is the embeddings.
        if name.endswith((".beta", ".inv_freq")) or name == "to_logits.1.weight":
            continue
        ours = name.replace(".0.fn.", ".").replace("ff_out.1.", "ff_out.")
        ours = ours.replace("to_logits.0.", "norm.").replace(".gamma", ".weight")
        out[name] = f"model.{ours}"
    return out


def _names(flamingo: Flamingo, xattn: XattnConfig) -> dict[str, str]:
    """Our names of what is trained to theirs."""
    top = "perceiver_resampler."
    theirs = {"latents": f"{top}latents", "norm": f"{top}norm"}
    theirs |= {"place.weight": f"{top}media_pos_emb", "time.weight": "video_frame_pos_emb"}
    for i in range(flamingo.resampler.config.depth):
        theirs |= {f"blocks.{i}.{part}": f"{top}layers.{i}.0.{part}" for part in _PARTS}
        theirs[f"blocks.{i}.ffw"] = f"{top}layers.{i}.1"
    names = sub_names(flamingo.resampler, "resampler.", theirs)
    layer = {part: f"attn.{part}" for part in ("norm", "to_q", "to_kv", "to_out")}
    layer |= {"ffw": "ff", "attn_gate": "attn_gate", "ffw_gate": "ff_gate"}
    for slot, at in enumerate(xattn.positions(flamingo.lm.lm.config.num_hidden_layers)):
        block = {our: f"layers.{at}.1.{their}" for our, their in layer.items()}
        names |= sub_names(flamingo.lm.inserted[slot], f"xattn.{slot}.", block)
    return names
