"""A library to index, small and of many kinds, and stores compared key by key."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import lmdb

from flamvid.store import FeatureStore

COLOURS = ("red", "lime", "blue", "yellow", "aqua", "white")


def make_clip(path: Path, filters: str) -> Path:
    """A clip of what ffmpeg's filters draw."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]
    encode = ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-g", "30"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", filters, *encode, str(path)], check=True)
    return path


def make_library(folder: Path, long: int = 0) -> Path:
    """Six short clips, a copy of one, a file that is no video, and one of `long` seconds if any."""
    (folder / "sub dir").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        place = folder / "sub dir" if number % 2 else folder
        make_clip(place / f"{colour} {number}.mp4", f"color={colour}:s=64x64:r=30:d={1 + number}")
    shutil.copy(folder / "red 0.mp4", folder / "zz copy.mp4")
    (folder / "broken.mp4").write_bytes(b"this is no video" * 64)
    if long:
        make_clip(folder / "b long.mp4", f"testsrc=s=64x64:r=30:d={long}")
    return folder


def contents(path: Path) -> dict[tuple[str, bytes], object]:
    """All that a store holds, by database and key, but for when it failed and was closed."""
    found: dict[tuple[str, bytes], object] = {}
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=16) as env,
        env.begin() as txn,
    ):
        for name in ("meta", "videos", "pts", "features", "vectors", "failures", "hash"):
            for key, value in txn.cursor(env.open_db(name.encode(), txn, create=False)):
                if name == "failures":
                    row = json.loads(value[48:])
                    found[name, key] = {k: v for k, v in row.items() if k != "time"}
                elif (name, key) != ("meta", b"closed"):
                    found[name, key] = value
    return found


def ids(store: Path) -> dict[str, str]:
    """The id of each video by its path."""
    opened = FeatureStore(store)
    return {opened[video].record.path: video for video in opened}


def exchange(one: Path, other: Path) -> None:
    one.rename(spare := one.with_name("spare"))
    other.rename(one)
    spare.rename(other)
