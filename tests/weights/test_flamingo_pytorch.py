"""State dicts of flamingo-pytorch against flamingo-pytorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from flamvid.errors import InputError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.ops import media_index
from flamvid.weights.flamingo_pytorch import build_flamingo_pytorch
from flamvid.weights.foreign import unwrap
from flamvid.weights.tensors import open_tensors

flamingo_pytorch = pytest.importorskip("flamingo_pytorch")
MEDIA = 3


class Pictures(nn.Module):
    """Embeddings as they come, pictures of n x d; both models take any encoder."""

    width = 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, -3)


def theirs(**sizes: int) -> nn.Module:
    torch.manual_seed(0)
    usual = {"dim": 32, "depth": 5, "dim_head": 8, "heads": 3, "cross_attn_every": 2}
    model = flamingo_pytorch.FlamingoPaLM(
        **usual | sizes,
        num_tokens=40,
        media_token_id=MEDIA,
        perceiver_num_latents=6,
        perceiver_depth=2,
        img_encoder=Pictures(),
    )
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if name.endswith("gate") else 0.3)
    return model.eval()


def ours(model: nn.Module, folder: Path) -> Flamingo:
    torch.save({f"module.{n}": t for n, t in model.state_dict().items()}, folder / "flamingo.pt")
    tensors = unwrap(open_tensors(folder / "flamingo.pt"))
    return build_flamingo_pytorch(tensors, Pictures(), folder / "flamingo.pt")


@pytest.mark.parametrize("every", [1, 2, 3, 9])
@torch.no_grad()
def test_logits_are_theirs(tmp_path: Path, every: int) -> None:
    reference = theirs(cross_attn_every=every)
    model = ours(reference, tmp_path)
    text = torch.randint(4, 40, (2, 9))
    text[0, [1, 5]], text[1, [0, 7]] = MEDIA, MEDIA
    embeddings = torch.randn(2, 2, 7, 32)  # b m n d
    wanted = reference(text, images=embeddings)
    logits = model(embeddings[:, :, None], text, media_index(text, MEDIA))
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_videos_and_the_cache(tmp_path: Path) -> None:
    reference = theirs(max_video_frames=4)
    model = ours(reference, tmp_path)
    text = torch.tensor([[MEDIA, 9, 8, 7, 6]])
    frames = torch.randn(1, 1, 3, 7, 32)  # b m t n d
    wanted = reference(text, videos=frames[:, :, :, None])
    index = media_index(text, MEDIA)
    torch.testing.assert_close(model(frames, text, index), wanted, atol=1e-4, rtol=0)
    cache, latents = DynamicCache(config=model.lm.lm.config), model.resample(frames)
    parts = [
        model.lm.head(model.lm(text[:, a:b], model.read(latents, index[:, a:b]), None, cache))
        for a, b in ((0, 3), (3, 4), (4, 5))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_more_media_than_it_has_places_for(tmp_path: Path) -> None:
    model = ours(theirs(), tmp_path)
    with pytest.raises(InputError, match="has 5 media; the model has embeddings for 4"):
        model.resample(torch.randn(1, 5, 1, 7, 32))


def test_what_is_missing_or_none(tmp_path: Path) -> None:
    state = dict(theirs().state_dict())
    gate = state.pop("layers.2.1.attn_gate")
    with pytest.raises(WeightsError, match=r"missing \[layers\.2\.1\.attn_gate\]"):
        build_flamingo_pytorch(state, Pictures(), tmp_path)
    state["layers.2.1.attn_gate"] = gate
    del state["layers.1.0.fn.attn_out.weight"]
    with pytest.raises(WeightsError, match=r"missing \[model\.layers\.1\.attn_out\.weight\]"):
        build_flamingo_pytorch(state, Pictures(), tmp_path)
    with pytest.raises(WeightsError, match="no state dict of a FlamingoPaLM"):
        build_flamingo_pytorch({}, Pictures(), tmp_path)
