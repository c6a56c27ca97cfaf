"""OpenFlamingo's model line by line, and ours with the same weights, for benches of the two.

A random model in the shape of OpenFlamingo's: MPT-1B's architecture with 12 layers of 512, a
resampler of 6 layers and 64 latents, over features of pictures instead of CLIP.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.linear import Linear
from flamvid.models.mosaic import MosaicAttention, MosaicConfig, Sight
from flamvid.models.resampler import ResamplerConfig
from flamvid.weights.open_flamingo import build_open_flamingo

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.weights.reference import FlamingoLayer, GatedCrossAttentionBlock, Perceiver

VOCAB, END, MEDIA = 50280, 50277, 50278
LATENTS, LAYERS, DIM = 64, 12, 512
MPT = MosaicConfig(d_model=DIM, n_heads=8, n_layers=LAYERS, vocab_size=VOCAB)


class OpenFlamingo(nn.Module):
    """Its parts over a MosaicForCausalLM, whose weights are drawn anew; features `width` wide."""

    def __init__(self, lm: Any, width: int, every: int) -> None:
        super().__init__()
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.05)  # more than at first, or all logits are close
        self.perceiver = Perceiver(width, 6, (8, 64), LATENTS)
        self.lang_encoder = lm
        for i, layer in enumerate(self.blocks):
            inserted = GatedCrossAttentionBlock(DIM, width) if (i + 1) % every == 0 else None
            self.blocks[i] = FlamingoLayer(inserted, layer)

    @property
    def blocks(self) -> Any:
        """The layers of its LM."""
        return self.lang_encoder.transformer.blocks

    def with_plain_layers(self) -> Any:
        """Itself, with torch's own linear layers and attention, as theirs has."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.__class__ = nn.Linear
            if isinstance(module, MosaicAttention):
                module.__class__ = _PlainAttention
        return self


class _PlainAttention(MosaicAttention):
    """MPT-1B's without our kernel."""

    def attend(self, q_BHSd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, sight: Sight) -> Tensor:
        bias = sight.bias[:, :, -q_BHSd.shape[2] :]
        out = F.scaled_dot_product_attention(q_BHSd, k_BHKd, v_BHKd, attn_mask=bias)
        return out.transpose(1, 2)


class Features(nn.Module):
    """Stands for CLIP, of which both sides would make the same features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def our_flamingo(peer: OpenFlamingo, lm: Any, width: int, every: int) -> Flamingo:
    """Our Flamingo of the peer's weights, over an LM of our own, which gets those of the peer's."""
    own = peer.lang_encoder.state_dict()
    own = {n.replace(".decoder_layer.", "."): t for n, t in own.items() if "gated_" not in n}
    lm.load_state_dict(own)
    held = {
        name: tensor
        for name, tensor in peer.state_dict().items()
        if name.startswith("perceiver.")
        or ".gated_cross_attn_layer." in name
        or name == "lang_encoder.transformer.wte.weight"
    }
    resampler = ResamplerConfig(
        features=width,
        width=width,
        depth=6,
        heads=8,
        head_width=64,
        latents=LATENTS,
        frames=0,
        project=False,
        activation="gelu",
    )
    xattn = XattnConfig(first=every - 1, every=every, heads=8, head_width=64, activation="gelu")
    vision: Any = Features(width)
    return build_open_flamingo(held, vision, lm, (resampler, xattn), Path("random"))
