"""Write shards of generated clips: one shape of one colour moves one way, and the caption says so.

    python tools/make_shapes.py OUT [--clips 1200] [--seed 0]

Every eighth combination of colour, shape and direction is in `held-out.tar` alone, so that no
caption of it was ever trained on, while each of its words was.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE, FRAMES = 128, 6
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "orange": (240, 130, 20),
    "purple": (130, 40, 170),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
Combination = tuple[str, str, str]


def combinations() -> tuple[list[Combination], list[Combination]]:
    """Those to train on, and those held out; every word is in both."""
    parts = enumerate(COLOURS), enumerate(SHAPES), enumerate(DIRECTIONS)
    seen: list[Combination] = []
    held_out: list[Combination] = []
    for (c, colour), (s, shape), (d, direction) in product(*map(list, parts)):
        (held_out if (c + 3 * s + 2 * d) % 8 == 0 else seen).append((colour, shape, direction))
    return seen, held_out


def caption(combination: Combination) -> str:
    """Such as "moving left: a red circle".

    What moves comes last: after it, a language model could guess from the text alone that the one
    way that it never read about is not meant.
    """
    colour, shape, direction = combination
    article = "an" if colour[0] in "aeiou" else "a"
    return f"moving {direction}: {article} {colour} {shape}"


def frames(combination: Combination, rng: random.Random) -> Iterator[np.ndarray]:
    """uint8 [H,W,3] of a clip: size, place, speed and ground are drawn."""
    colour, shape, direction = combination
    radius = rng.uniform(14, 22)
    way = DIRECTIONS[direction]
    path = rng.uniform(60, 78)  # pixels, from the first frame to the last
    low, high = radius + 2, SIZE - radius - 2
    start = []
    for step in way:
        least, most = (low, high - path) if step > 0 else (low + path, high)
        start.append(rng.uniform(least, most) if step else rng.uniform(low, high))
    ground = Image.fromarray(_ground(rng))
    noise = np.random.default_rng(rng.randrange(1 << 32))
    for frame in range(FRAMES):
        done = path * frame / (FRAMES - 1)
        x, y = (at + step * done for at, step in zip(start, way, strict=True))
        picture = ground.copy()
        _draw(ImageDraw.Draw(picture), shape, x, y, radius, COLOURS[colour])
        grain = noise.normal(0, 4, (SIZE, SIZE, 1))
        yield np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)


def _ground(rng: random.Random) -> np.ndarray:
    """Redder to the right and bluer to the bottom: by it a place is known, as in real scenes."""
    run, flat = np.linspace(0, 130, SIZE), rng.uniform(50, 70)
    red, blue = np.meshgrid(flat + run, flat + run)
    return np.stack([red, flat + 150 - red / 2, blue], axis=-1).astype(np.uint8)


def _draw(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, int, int]
) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill)
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), None, fill, round(r / 3))
    elif shape == "bar":
        draw.rectangle((x - r / 4, y - r, x + r / 4, y + r), fill)
    else:
        draw.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill)
        draw.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill)


def write_shard(path: Path, chosen: list[Combination], clips: int, rng: random.Random) -> None:
    """So many clips of these combinations in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for clip in range(clips):
            combination = chosen[clip % len(chosen)]
            for at, pixels in enumerate(frames(combination, rng)):
                data = io.BytesIO()
                Image.fromarray(pixels).save(data, "png", compress_level=1)
                _add(tar, f"{path.stem}-{clip:05}.f{at:02}.png", data.getvalue())
            captions = json.dumps({"captions": [caption(combination)]})
            _add(tar, f"{path.stem}-{clip:05}.json", captions.encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_all(out: Path, clips: int, seed: int) -> None:
    """The training shard and the one of what is held out, an eighth of it in size."""
    seen, held_out = combinations()
    rng = random.Random(seed)
    write_shard(out / "train-000.tar", seen, clips, rng)
    write_shard(out / "held-out.tar", held_out, clips // 8, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=2016)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_all(options.out, options.clips, options.seed)


if __name__ == "__main__":
    main()
