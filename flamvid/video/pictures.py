"""Still images, folders of frames and numbered sequences as sources."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flamvid.errors import DecodeError, FlamvidError, InputError, SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.policy import check_size

__all__ = [
    "PICTURES",
    "PictureFile",
    "PictureFrames",
    "decoding",
    "fit",
    "flatten",
    "header",
    "is_picture",
    "is_sequence",
    "natural",
    "open_files",
    "open_folder",
    "open_picture",
    "open_sequence",
    "opened",
    "read_picture",
]

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm"})
FOLDER_FPS = 1.0  # files say nothing about time: they are taken to be a second apart

# Whatever a file is called, nothing else is tried: Pillow would run Ghostscript on an EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "GIF")
_NAMES = "JPEG, PNG, WebP, AVIF, BMP, TIFF, PPM or GIF"

_NUMBER = re.compile(r"%(?:0(\d{1,2}))?d")

# Without a handler, what Pillow logs about a damaged file would reach stderr beside our one line.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# The filters of warnings belong to the process: two threads that change them at once would leave
# them changed.
_WARNINGS = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child forked while it is held would wait for ever
    os.register_at_fork(
        before=_WARNINGS.acquire,
        after_in_parent=_WARNINGS.release,
        after_in_child=_WARNINGS.release,
    )


class PictureFile(Protocol):
    """Where the bytes of a picture are: a path, or a member of an archive. Its str names it."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO: ...


@dataclass(frozen=True, slots=True, eq=False)
class PictureFrames:
    """Image files as frames; each is shown for `durations` seconds. `first` is the first one."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    files: Sequence[PictureFile]
    size: tuple[int, int] | None
    first: Tensor

    decoder = "pillow"
    reason = "pictures"

    @property
    def keyframes(self) -> NDArray[np.int64]:
        """Every picture stands by itself."""
        return np.arange(len(self.pts))

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places; all are brought to `size`, or must agree in size."""
        at = np.asarray(indices, dtype=np.int64)
        pixels = self.first.new_empty((len(at), *self.first.shape))
        for i in np.unique(at).tolist():
            pixels[torch.from_numpy(at == i)] = self._read(i)
        return Frames(pixels, self.pts[at], self.durations[at])

    def _read(self, i: int) -> Tensor:
        if i == 0:
            return self.first
        picture = fit(read_picture(self.files[i]), self.size)
        if picture.shape != self.first.shape:
            raise SourceError(
                f"{self.files[i]} is {picture.shape[2]}x{picture.shape[1]}, the first frame is "
                f"{self.first.shape[2]}x{self.first.shape[1]}; frames of one {self.info.container} "
                "must agree in size"
            )
        return picture

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def open_picture(file: Path, size: tuple[int, int] | None) -> PictureFrames:
    """A still image: one frame, at time 0, that lasts no time."""
    return open_files((file,), str(file), "image", None, size)


def open_folder(
    folder: Path, size: tuple[int, int] | None, fps: float = FOLDER_FPS
) -> PictureFrames:
    """A folder of frames in natural order (2 before 10), `fps` of them a second."""
    found = [f for f in _listed(folder) if f.suffix.lower() in PICTURES and f.is_file()]
    if not found:
        raise SourceError(
            f"{folder} is a folder without frames, which are files that end in "
            f"{', '.join(sorted(PICTURES))}; a video in it goes by its own path"
        )
    found.sort(key=lambda f: natural(f.name))
    return open_files(found, str(folder), "folder", fps, size)


def is_sequence(pattern: str | Path) -> bool:
    """Whether this is a pattern such as `frames/img_%04d.png` and no file of that very name."""
    return _NUMBER.search(Path(pattern).name) is not None and not Path(pattern).exists()


def open_sequence(
    pattern: str | Path, size: tuple[int, int] | None, fps: float = FOLDER_FPS
) -> PictureFrames:
    """Files numbered as in `img_%04d.png`: from the first number there is, without a gap.

    ffmpeg takes a gap for the end and says nothing; here it is an error, for a frame that was lost
    should not shorten a video in silence.
    """
    pattern = Path(pattern)
    found = _numbered(pattern)
    if not found:
        raise SourceError(f"no file matches {pattern}; check the folder and the digits in the name")
    for before, after in zip(sorted(found), sorted(found)[1:], strict=False):
        if after != before + 1:
            raise SourceError(
                f"{pattern} has a gap: {found[before].name} is followed by {found[after].name}; "
                "restore what is missing, or give the folder to take the files that are there"
            )
    return open_files([found[n] for n in sorted(found)], str(pattern), "sequence", fps, size)


def open_files(
    files: Sequence[PictureFile],
    name: str,
    kind: str,
    fps: float | None,
    size: tuple[int, int] | None,
) -> PictureFrames:
    """Frames from these files, in this order; without `fps` they last no time."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps is {fps}; must be above 0")
    with opened(files[0]) as image:
        codec = (image.format or "").lower()
        whole = flatten(image)
    n = len(files)
    info = VideoInfo(
        path=name,
        container=kind,
        codec=codec,
        width=whole.shape[2],
        height=whole.shape[1],
        fps=fps or 0.0,
        duration=n / fps if fps else 0.0,
        frames=n,
    )
    pts = np.arange(n) / fps if fps else np.zeros(n)
    durations = np.full(n, 1 / fps if fps else 0.0)
    return PictureFrames(info, pts, durations, files, size, fit(whole, size))


def read_picture(file: PictureFile) -> Tensor:
    """One image as it is meant to be seen, uint8 [3,H,W]: turned upright, on white."""
    with opened(file) as image:
        return flatten(image)


def is_picture(file: PictureFile) -> bool:
    """Whether the file is, by its header, an image that is read here, whatever its name."""
    try:
        with opened(file):
            return True
    except FlamvidError:
        return False


def fit(picture: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The picture at this height and width; None leaves it as it is."""
    if size is None or tuple(picture.shape[1:]) == size:
        return picture
    # Half a second to import, which a video decoded to size does without.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    resized: Tensor = F.resize(picture, list(size), InterpolationMode.BICUBIC, antialias=True)
    return resized


@contextmanager
def opened(file: PictureFile) -> Iterator[Image.Image]:
    """An image for the block: its header is read, and its size is safe to decode."""
    with decoding(file), file.open("rb") as stream, header(stream, str(file)) as image:
        yield image


def header(stream: BinaryIO, name: str) -> Image.Image:
    """The image in a stream, not yet decoded; over the size cap it is refused."""
    # A WebP's canvas is allocated as soon as Pillow opens it.
    check_size(name, *_webp_canvas(stream.read(30)))
    stream.seek(0)
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(stream, formats=_FORMATS)
    check_size(name, *image.size)
    return image


@contextmanager
def decoding(file: object) -> Iterator[None]:
    """What Pillow raises on a damaged file within the block becomes one `DecodeError`."""
    try:
        yield
    except FlamvidError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"{file} is no image that Pillow can read; give an undamaged {_NAMES}"
        ) from error
    except Image.DecompressionBombError as error:
        raise DecodeError(f"{file} claims a picture of over 8K: scale it down first") from error
    except FileNotFoundError as error:
        raise SourceError(f"{file} does not exist; check the path") from error
    except PermissionError as error:
        raise SourceError(f"{file} can't be read: permission denied") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise anything at all
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DecodeError(
            f"{file} can't be decoded: {said}; it may be damaged: copy it again, or save it as PNG"
        ) from error


def flatten(image: Image.Image) -> Tensor:
    """The image upright, on white, in 8 bits of red, green and blue, uint8 [3,H,W]."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF that is damaged; the picture need not be
        orientation = image.getexif().get(0x0112, 1)
    image.load()
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts numbers in names by value: more digits are more, however many."""
    key = []
    for part in re.findall(r"[0-9]+|[^0-9]+", name.lower()):
        digits = part.lstrip("0")
        key.append((0, len(digits), digits) if part[0] in "0123456789" else (1, 0, part))
    return key, name


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats in [0, 1], at 8 bits; anything else has no known white."""
    values = np.array(image)
    if image.mode == "F":
        if not (values >= 0).all() or values.max() > 1:
            raise ValueError("its grey values are floats beyond [0, 1]: scale them")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its grey values have more than 16 bits: scale them")
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _webp_canvas(head: bytes) -> tuple[int, int]:
    """Width and height in the header of an extended WebP; (0, 0) for anything else."""
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) < 30:
        return 0, 0
    return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1


def _listed(folder: Path) -> list[Path]:
    """What is in the folder, without hidden files: `._1.png` of a Mac is no picture."""
    try:
        return [f for f in folder.iterdir() if not f.name.startswith(".")]
    except OSError as error:
        raise SourceError(f"{folder} can't be listed: {error.strerror}") from error


def _numbered(pattern: Path) -> dict[int, Path]:
    """The files of the folder that the pattern names, by their number."""
    number = _NUMBER.search(pattern.name)
    if number is None or _NUMBER.search(pattern.name, number.end()):
        raise InputError(f"{pattern} must have one number in the file's name, such as img_%04d.png")
    width = int(number[1] or 0)
    before, after = pattern.name[: number.start()], pattern.name[number.end() :]
    before, after = before.replace("%%", "%"), after.replace("%%", "%")
    found: dict[int, Path] = {}
    for file in _listed(pattern.parent):
        digits = file.name.removeprefix(before).removesuffix(after)
        if f"{before}{digits}{after}" != file.name or not re.fullmatch("[0-9]{1,18}", digits):
            continue
        # The digits must be those that printf writes: %d gives 7, never 007.
        if f"{int(digits):0{width}d}" == digits and file.is_file():
            found[int(digits)] = file
    return found
