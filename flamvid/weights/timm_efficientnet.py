"""EfficientNet-Lite as its authors' PyTorch port saved it, to timm's names."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from flamvid.errors import WeightsError

__all__ = ["convert_efficientnet"]


def convert_efficientnet(source: Path, out: Path, timm_name: str) -> None:
    """Write `out/model.safetensors` for timm's `timm_name` from the .pth file `source`.

    Both list their tensors in the order of the network, so position maps one to the other; every
    shape is checked, and ImageNet's classes on a photograph prove it (tests/weights).
    """
    theirs = torch.load(source, map_location="cpu", weights_only=True)
    ours = timm.create_model(timm_name, pretrained=False).state_dict()
    # Counters of training steps stand in one and not in the other; nothing reads them.
    values = [v for k, v in theirs.items() if not k.endswith("num_batches_tracked")]
    names = [k for k in ours if not k.endswith("num_batches_tracked")]
    if [v.shape for v in values] != [ours[k].shape for k in names]:
        raise WeightsError(f"{source.name} does not have the layout of timm's {timm_name}")
    tensors = {k: v.contiguous() for k, v in zip(names, values, strict=True)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
