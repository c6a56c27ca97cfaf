"""Sources as typed, to sources as opened: globs that the shell left, and names that are wrong."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from flamvid.cli.failure import one_line, report, say

__all__ = ["existing", "expand"]


def expand(arguments: list[str]) -> list[str]:
    """All sources in the order given, each glob as its matches in natural order.

    What exists is taken as it stands, `[a].mp4` too, but a folder without frames is the videos in
    it; addresses are left alone; `**` crosses folders and then only files are meant. A glob that
    matches nothing stays, to be reported.
    """
    out: list[str] = []
    for argument in arguments:
        if _elsewhere(argument) or os.path.lexists(argument) or not glob.has_magic(argument):
            out.extend(_videos(argument) or [argument])
            continue
        found = glob.glob(argument, recursive=True)
        if "**" in argument:
            found = [path for path in found if not os.path.isdir(path)]
        matches = sorted(found, key=_natural)
        out.extend(one for match in matches for one in _videos(match) or [match])
        out.extend([] if matches else [argument])
    return out


def existing(sources: list[str]) -> list[str]:
    """The sources that are there; the others are reported before a model is loaded for nothing."""
    out = []
    for source in sources:
        if _elsewhere(source) or os.path.exists(source) or _within(source):
            out.append(source)
        elif glob.has_magic(source):
            report(f"{source}: no file matches; check the pattern and the folder")
        else:
            report(f"{source}: no such file or folder; check the path")
    return out


def _videos(source: str) -> list[str]:
    """The videos in a folder, as `flamvid index` finds them; none of a folder of frames."""
    if _elsewhere(source) or not os.path.isdir(source):
        return []
    from flamvid.index.manifest import VIDEOS, videos
    from flamvid.video.pictures import PICTURES

    try:
        here = [path for path in Path(source).iterdir() if path.name[0] != "." and path.is_file()]
    except OSError:  # told when it is opened
        return []
    kinds = {path.suffix.lower() for path in here}
    if kinds & PICTURES:
        if not kinds & VIDEOS:
            return []
        say(f"flamvid: {one_line(source)} holds pictures beside its videos, which are left out")
    return list(videos(Path(source)))


def _elsewhere(source: str) -> bool:
    """What is no path: an address, standard input, a camera."""
    return "://" in source or source == "-" or re.fullmatch(r"cam:\d+", source) is not None


def _within(source: str) -> bool:
    """What stands for files without being the name of one: shard.tar#sample, img_%04d.png."""
    return ".tar#" in source or re.search(r"%0?\d*d", os.path.basename(source)) is not None


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Sorts clip2 before clip10: digits by value, before letters."""
    pieces = re.split(r"([0-9]+)", path)
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in pieces if p]
