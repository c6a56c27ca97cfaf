"""Still images and folders of frames as sources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from flamvid.errors import DecodeError, SourceError
from flamvid.types import Frames, VideoInfo

__all__ = ["PICTURES", "PictureFrames", "open_folder", "open_picture", "read_picture"]

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm"})
FOLDER_FPS = 1.0  # a folder says nothing about time: its frames are taken to be a second apart


@dataclass(frozen=True, slots=True, eq=False)
class PictureFrames:
    """Image files as frames; each is shown for `durations` seconds."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    files: tuple[Path, ...]
    size: tuple[int, int] | None

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places; all are brought to `size`, or must agree in size."""
        pictures: dict[int, Tensor] = {}
        for i in indices:
            if i not in pictures:
                pictures[i] = self._read(self.files[i])
        at = np.asarray(indices, dtype=np.int64)
        return Frames(torch.stack([pictures[i] for i in indices]), self.pts[at], self.durations[at])

    def _read(self, file: Path) -> Tensor:
        picture = read_picture(file)
        if self.size is not None:
            mode = InterpolationMode.BICUBIC
            resized: Tensor = F.resize(picture, list(self.size), mode, antialias=True)
            return resized
        wanted = (self.info.height, self.info.width)
        if picture.shape[1:] != wanted:
            raise SourceError(
                f"{file} is {picture.shape[2]}x{picture.shape[1]}, the first frame of the folder "
                f"is {wanted[1]}x{wanted[0]}; frames of one folder must agree in size"
            )
        return picture

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def open_picture(file: Path, size: tuple[int, int] | None) -> PictureFrames:
    """A still image: one frame, at time 0, that lasts no time."""
    return _open((file,), str(file), "image", 0.0, size)


def open_folder(folder: Path, size: tuple[int, int] | None) -> PictureFrames:
    """A folder of frames in natural order (2 before 10), a second apart."""
    found = [f for f in folder.iterdir() if f.suffix.lower() in PICTURES and f.is_file()]
    if not found:
        raise SourceError(
            f"{folder} is a folder without frames; frames are files that end in "
            f"{', '.join(sorted(PICTURES))}"
        )
    return _open(tuple(sorted(found, key=_natural)), str(folder), "folder", 1 / FOLDER_FPS, size)


def read_picture(file: Path) -> Tensor:
    """One image as it is meant to be seen, uint8 [3,H,W]: turned upright, on white."""
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            pixels = np.array(picture.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DecodeError(f"{file} is no image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{file} can't be decoded: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _open(
    files: tuple[Path, ...], name: str, kind: str, seconds: float, size: tuple[int, int] | None
) -> PictureFrames:
    _, height, width = read_picture(files[0]).shape
    n = len(files)
    info = VideoInfo(
        path=name,
        container=kind,
        codec=files[0].suffix.lower().lstrip("."),
        width=width,
        height=height,
        fps=1 / seconds if seconds else 0.0,
        duration=n * seconds,
        frames=n,
    )
    pts = np.arange(n, dtype=np.float64) * seconds
    return PictureFrames(info, pts, np.full(n, seconds), files, size)


def _natural(file: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", file.name.lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts]
