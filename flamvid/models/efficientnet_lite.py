"""EfficientNet-Lite for inference: timm's `tf_efficientnet_lite*` with its batch norms folded away.

timm runs every other encoder, and this one's features are tested against its. It is ours because
importing timm takes as long as looking at eight frames, and folded convolutions are quicker.

Legend: B pictures, F feature width, h and w the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EfficientNetLite", "is_lite"]

_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage (Tan and Le 2019, table 1)
_EPS = 1e-3  # of TensorFlow's batch norms
# Depth of each stage, and its width, before they are scaled.
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_WIDTHS = (16, 24, 40, 80, 112, 192, 320)
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_SCALES = {  # name: width, depth
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_NORM = ("weight", "bias", "running_mean", "running_var")


def is_lite(name: str) -> bool:
    """Whether a timm name is one of these."""
    return name in _SCALES


class _Conv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: what is odd goes to the right and the bottom."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, 0, groups=groups)

    def reset_parameters(self) -> None:
        """No random weights: they are always read from a file."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        if k == 1:
            return super().forward(x)
        if s == 1:
            return F.conv2d(x, self.weight, self.bias, 1, k // 2, groups=self.groups)
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[-2:]]
        if need[0] % 2 == 0 and need[1] % 2 == 0:
            pad = (need[0] // 2, need[1] // 2)
            return F.conv2d(x, self.weight, self.bias, s, pad, groups=self.groups)
        top, left = need[0] // 2, need[1] // 2
        return super().forward(F.pad(x, (left, need[1] - left, top, need[0] - top)))

    def fold(self, tensors: Mapping[str, Tensor], conv: str, norm: str) -> None:
        """Read the weights of a convolution and of the batch norm behind it, as one."""
        dtype = self.weight.dtype
        gain, bias, mean, variance = (tensors[f"{norm}.{part}"].to(dtype) for part in _NORM)
        scale = gain / (variance + _EPS).sqrt()
        self.weight.copy_(tensors[f"{conv}.weight"].to(dtype) * scale[:, None, None, None])
        assert self.bias is not None
        self.bias.copy_(bias - mean * scale)


class _Block(nn.Module):
    """Widen by `ratio`, filter each channel, narrow; with a short cut where shapes allow it."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, ratio: int) -> None:
        super().__init__()
        wide = cin * ratio
        self.widen = _Conv(cin, wide, 1) if ratio > 1 else None
        self.depthwise = _Conv(wide, wide, kernel, stride, groups=wide)
        self.narrow = _Conv(wide, cout, 1)
        self.short_cut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else F.relu6(self.widen(x), inplace=True)
        out: Tensor = self.narrow(F.relu6(self.depthwise(y), inplace=True))
        return out.add_(x) if self.short_cut else out

    def convolutions(self) -> Iterator[tuple[_Conv, str, str]]:
        """Each convolution, with timm's name of it and of the batch norm behind it."""
        if self.widen is None:
            yield self.depthwise, "conv_dw", "bn1"
            yield self.narrow, "conv_pw", "bn2"
            return
        yield self.widen, "conv_pw", "bn1"
        yield self.depthwise, "conv_dw", "bn2"
        yield self.narrow, "conv_pwl", "bn3"


class EfficientNetLite(nn.Module):
    """timm's `tf_efficientnet_lite{0..4}` up to its pooling, and its classifier."""

    num_features = _HEAD

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth = _SCALES[name]
        self.stem = _Conv(3, _STEM, 3, 2)
        stages: list[list[_Block]] = []
        cin = _STEM
        for at, (repeats, cout, kernel) in enumerate(zip(_REPEATS, _WIDTHS, _KERNELS, strict=True)):
            # Lite models scale neither the depth of the first stage nor that of the last.
            count = repeats if at in (0, len(_REPEATS) - 1) else math.ceil(repeats * depth)
            cout = _rounded(cout * width)
            blocks = []
            for i in range(count):
                stride = _STRIDES[at] if i == 0 else 1
                blocks.append(_Block(cin, cout, kernel, stride, 1 if at == 0 else 6))
                cin = cout
            stages.append(blocks)
        self.blocks = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.head = _Conv(cin, _HEAD, 1)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward_features(self, pictures_B3HW: Tensor) -> Tensor:
        """Features [B,F,h,w]."""
        x = F.relu6(self.stem(pictures_B3HW), inplace=True)
        for stage in self.blocks:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        out: Tensor = F.relu6(self.head(x), inplace=True)
        return out

    def get_classifier(self) -> nn.Linear:
        """Pooled features to logits."""
        return self.classifier

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """Copy timm's tensors in, or our own; gives the names that are missing, and those too many.

        Nothing is copied unless all are there.
        """
        if tensors.keys() == self.state_dict().keys():
            self.load_state_dict(dict(tensors))
            return [], []
        wanted = {"classifier.weight", "classifier.bias"}
        for _, conv, norm in self._convolutions():
            wanted |= {f"{conv}.weight"} | {f"{norm}.{part}" for part in _NORM}
        given = {name for name in tensors if not name.endswith("num_batches_tracked")}
        if wanted == given:
            for module, conv, norm in self._convolutions():
                module.fold(tensors, conv, norm)
            self.classifier.weight.copy_(tensors["classifier.weight"])
            self.classifier.bias.copy_(tensors["classifier.bias"])
        return sorted(wanted - given), sorted(given - wanted)

    def _convolutions(self) -> Iterator[tuple[_Conv, str, str]]:
        """Each convolution, with timm's name of it and of the batch norm behind it."""
        yield self.stem, "conv_stem", "bn1"
        for s, stage in enumerate(self.blocks):
            assert isinstance(stage, nn.ModuleList)
            for i, block in enumerate(stage):
                assert isinstance(block, _Block)
                for module, conv, norm in block.convolutions():
                    yield module, f"blocks.{s}.{i}.{conv}", f"blocks.{s}.{i}.{norm}"
        yield self.head, "conv_head", "bn2"


def _rounded(width: float) -> int:
    """The nearest multiple of 8 that is not a tenth below."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8
