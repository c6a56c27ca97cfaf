"""Files that git-lfs left in the place of weights."""

from __future__ import annotations

from pathlib import Path

from flamvid.errors import WeightsError

__all__ = ["refuse_pointers"]

_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointers(*paths: Path) -> None:
    """WeightsError for a file that is a pointer of git-lfs; what can't be read is left alone."""
    for path in paths:
        try:
            with path.open("rb") as file:
                found = file.read(len(_POINTER)) == _POINTER
        except OSError:
            continue
        if found:
            raise WeightsError(
                f"{path} is a pointer of git-lfs, not the weights themselves; run git lfs pull in "
                f"{path.parent}, or download the file"
            )
