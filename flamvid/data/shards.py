"""Clip-text and image-text pairs from WebDataset shards.

A video is `<id>.f00.webp, <id>.f01.webp, ...` and `<id>.json`; a still is `<id>.webp` and
`<id>.json`; the JSON has `captions`.
"""

from __future__ import annotations

import glob
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from flamvid.data.samples import sound
from flamvid.errors import ConfigError, SourceError
from flamvid.video.pictures import natural

__all__ = ["Sample", "expand", "read_shard", "samples_in"]

_PICTURES = ("webp", "jpg", "jpeg", "png")
_FORMATS = ("WEBP", "JPEG", "PNG")  # and no EPS under such a name, for which a program is run


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One media with its captions; `pictures` are uint8 [3,H,W], in time order."""

    id: str
    pictures: tuple[Tensor, ...]
    captions: tuple[str, ...]


def expand(patterns: Sequence[str], base: Path) -> list[Path]:
    """Shards that the glob patterns name, relative to `base`; a pattern without any is an error."""
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(str(base / pattern)))
        if not matches:
            raise ConfigError(f"no shard matches {pattern!r} under {base}; correct the recipe")
        found += [Path(m) for m in matches]
    return found


def read_shard(path: Path, wrong: Callable[[SourceError], None] | None = None) -> Iterator[Sample]:
    """Samples of one shard, in its order.

    wrong: told of each sample that can't be read, which is left out; without it, it is raised.
    """
    try:
        # webdataset runs `pipe:` names as commands: give it an open file, never a name.
        with path.open("rb") as stream:
            source = {"url": str(path), "stream": stream}
            members = webdataset.tariterators.tar_file_expander([source])
            for group in webdataset.tariterators.group_by_keys(members):
                try:
                    sample = _sample(group, path)
                except SourceError as error:
                    if wrong is None:
                        raise
                    wrong(error)
                    continue
                yield sample
    except (tarfile.TarError, ValueError) as error:
        reason = str(error.args[0]).partition(" @ ")[0]  # webdataset adds objects to the message
        raise SourceError(f"{path} is no whole tar file ({reason}); copy it again") from error


def samples_in(path: Path) -> int:
    """How many samples a shard holds, by its members' names; SourceError where it is no tar."""
    try:
        with tarfile.open(path, "r:") as shard:  # or a damaged one would be told in five lines
            return sum(member.name.endswith(".json") for member in shard)
    except (tarfile.TarError, ValueError) as error:
        raise SourceError(f"{path} is no whole tar file ({error}); copy it again") from error


def _sample(group: dict[str, Any], path: Path) -> Sample:
    key = group["__key__"]
    try:
        captions = json.loads(group["json"])["captions"]
        if not isinstance(captions, list):
            raise SourceError(f"{path}: the captions of {key} are {captions!r}; must be a list")
        frames = sorted((s for s in group if s.rpartition(".")[2] in _PICTURES), key=natural)
        if not frames or not captions:
            raise SourceError(f"{path}: {key} has no pictures or no captions")
        pictures = tuple(_picture(group[name]) for name in frames)
    except (
        LookupError,
        TypeError,
        ValueError,
        OSError,
        RecursionError,
        Image.DecompressionBombError,
    ) as error:
        raise SourceError(f"{path}: sample {key} can't be read ({error})") from error
    return Sample(key, pictures, tuple(sound(" ".join(str(c).split())) for c in captions))


def _picture(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
