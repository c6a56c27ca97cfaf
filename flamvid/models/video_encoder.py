"""Encoders of clips, from pytorchvideo: features over time and space.

Legend: X pictures, n frames of a clip, T steps of time that come out, N places, F feature width.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError
from flamvid.models.encoder import Clip, Pictures, VisionEncoder

__all__ = ["VIDEO_MODELS", "VideoEncoder", "VideoModel"]

_SITE = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics"
_FPS = 30.0  # of the videos whose every `stride`-th frame they were trained on
_SLOWER = 4  # SlowFast's slow pathway sees every fourth frame of the fast one


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoModel:
    """One of pytorchvideo's hub models, as its authors trained and test it on Kinetics-400.

    frames, stride: a clip is so many frames, each the stride-th of 30 a second. steps: how many
    moments come out. size, shorter: pictures as in `VisionConfig`. fixed: takes no other size.
    file: of the released weights. head: how many blocks at the end pool and classify.
    """

    frames: int
    stride: int
    steps: int
    width: int
    size: int
    shorter: int
    file: str
    fixed: bool = False
    head: int = 1

    @property
    def clip(self) -> Clip:
        return Clip(self.frames, _FPS / self.stride, self.steps)

    @property
    def pictures(self) -> Pictures:
        # pytorchvideo's ShortSideScale doesn't smooth what it shrinks.
        return Pictures(size=self.size, shorter=self.shorter, antialias=False)

    @property
    def address(self) -> str:
        """Where its weights were released."""
        return f"{_SITE}/{self.file}"


def _x3d(frames: int, stride: int, size: int, file: str) -> VideoModel:
    return VideoModel(
        frames=frames,
        stride=stride,
        steps=frames,
        width=192,
        size=size,
        shorter=size,
        file=file,
    )


def _resnet(frames: int, stride: int, width: int, file: str, head: int = 1) -> VideoModel:
    return VideoModel(
        frames=frames,
        stride=stride,
        steps=8,
        width=width,
        size=256,
        shorter=256,
        file=file,
        head=head,
    )


def _mvit(frames: int, stride: int, file: str) -> VideoModel:
    return VideoModel(
        frames=frames,
        stride=stride,
        steps=frames // 2,
        width=768,
        size=224,
        shorter=256,
        file=file,
        fixed=True,
        head=0,
    )


VIDEO_MODELS = {
    "x3d_xs": _x3d(4, 12, 182, "X3D_XS.pyth"),
    "x3d_s": _x3d(13, 6, 182, "X3D_S.pyth"),
    "x3d_m": _x3d(16, 5, 256, "X3D_M.pyth"),
    "x3d_l": _x3d(16, 5, 356, "X3D_L.pyth"),
    "slow_r50": _resnet(8, 8, 2048, "SLOW_8x8_R50.pyth"),
    "slowfast_r50": _resnet(32, 2, 2048 + 256, "SLOWFAST_8x8_R50.pyth", head=2),
    "slowfast_r101": _resnet(32, 2, 2048 + 256, "SLOWFAST_8x8_R101.pyth", head=2),
    "mvit_base_16x4": _mvit(16, 4, "MVIT_B_16x4.pyth"),
    "mvit_base_32x3": _mvit(32, 3, "MVIT_B_32x3_f294077834.pyth"),
}
"""Encoders by the names that pytorchvideo's hub gives them."""


class VideoEncoder(VisionEncoder):
    """The map before the head, of each clip of a media: moments [T,N,F], clip after clip.

    Of SlowFast, the fast pathway's features are averaged over the frames of each moment of the
    slow one, and stand behind that moment's own.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.spec = name, video_model(name)
        self.model, self.left_out = _bare(name, self.spec)
        self.width, self.clip = self.spec.width, self.spec.clip

    def described(self) -> dict[str, Any]:
        return {"encoder": f"pytorchvideo:{self.name}"}

    def forward(self, pictures_X3HW: Tensor) -> Tensor:
        """Features [T,N,F] of one media's pictures in order, one clip in memory at a time.

        X pictures that fill no whole number of clips are spread over the next one, and so repeat.
        """
        n, X = self.spec.frames, len(pictures_X3HW)
        filled = -(-X // n) * n
        at = (2 * torch.arange(filled) + 1) * X // (2 * filled)
        return torch.cat([self._moments(pictures_X3HW[clip]) for clip in at.split(n)])

    def _moments(self, pictures_n3HW: Tensor) -> Tensor:
        clip_13nHW = pictures_n3HW.transpose(0, 1)[None]
        T = self.spec.steps
        if self.name.startswith("mvit"):  # [1, 1 + T*N, F], the class token first
            moments: Tensor = self.model(clip_13nHW)[0, 1:].unflatten(0, (T, -1))
            return moments
        if self.name.startswith("slowfast"):
            n = self.spec.frames
            slow = torch.linspace(0, n - 1, n // _SLOWER).long()
            slow_map, fast_map = self.model([clip_13nHW[:, :, slow], clip_13nHW])
            map_1FThw = torch.cat([slow_map, fast_map.unflatten(2, (T, -1)).mean(3)], dim=1)
        else:
            map_1FThw = self.model(clip_13nHW)
        return map_1FThw[0].permute(1, 2, 3, 0).flatten(1, 2)


def video_model(name: str) -> VideoModel:
    """What is known of an encoder; a ConfigError that names all where there is none."""
    if name not in VIDEO_MODELS:
        raise ConfigError(
            f"vision.encoder is 'pytorchvideo:{name}'; must be one of {', '.join(VIDEO_MODELS)}"
        )
    return VIDEO_MODELS[name]


def _bare(name: str, spec: VideoModel) -> tuple[nn.Module, tuple[str, ...]]:
    """The model without its head, as initialised, and how the names of the head's tensors begin."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles with torch.jit, which is deprecated
        import pytorchvideo.models.hub as hub
    # It computes sizes with tensors, which have no values on the meta device.
    with torch.device("cpu"):
        model: nn.Module = getattr(hub, name)(**({} if spec.head else {"head": None}))
    blocks: Any = model.blocks
    kept = len(blocks) - spec.head
    left_out = ["head.", *(f"blocks.{i}." for i in range(kept, len(blocks)))]
    del blocks[kept:]
    return model.to(torch.get_default_device()), tuple(left_out)
