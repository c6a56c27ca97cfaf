"""Files that are lists of other files: an HLS playlist may name its neighbours, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from flamvid.errors import SourceError

__all__ = ["check_references"]

_LONGEST = 4 << 20  # bytes; a day of two-second segments has a tenth of that
_URI = re.compile(r'URI="([^"]*)"')
_OTHERS = {
    b"ffconcat": "an ffconcat list",
    b"<?xml": "an XML manifest",
    b"<MPD": "a DASH manifest",
    b"v=0\r": "an SDP description",
    b"v=0\n": "an SDP description",
    b"[playlist]": "a playlist",
}


def check_references(path: Path) -> bool:
    """True for an HLS playlist whose every segment lies beside or below it; False for media.

    `SourceError` for one that reaches elsewhere, and for other kinds of lists.
    """
    with path.open("rb") as file:
        head = file.read(16).removeprefix(b"\xef\xbb\xbf").lstrip()
        for start, kind in _OTHERS.items():
            if head.startswith(start):
                raise SourceError(f"{path} is {kind}, not a video; give the video itself")
        if not head.startswith(b"#EXTM3U"):
            return False
        file.seek(0)
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise SourceError(f"{path} is a playlist of over {_LONGEST >> 20} MiB; split it")
    _check(path, path.resolve().parent, text.decode("utf-8", "replace"), depth=0)
    return True


def _check(shown: Path, folder: Path, text: str, depth: int) -> None:
    for line in text.splitlines():
        line = line.strip()
        named = _URI.findall(line) if line.startswith("#") else [line] if line else []
        for name in named:
            target = (folder / name).resolve()
            inside = target.is_relative_to(folder)
            if "\0" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name) or not inside:
                raise SourceError(
                    f"{shown} is a playlist that names {name!r}; a playlist on disk may only name "
                    "files in its own folder"
                )
            if target.suffix.lower() in (".m3u8", ".m3u") and target.is_file() and depth < 2:
                with target.open("rb") as file:
                    below = file.read(_LONGEST).decode("utf-8", "replace")
                _check(shown, target.parent, below, depth + 1)
