"""Lines of standard input, whatever bytes come."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from flamvid.errors import InputError

__all__ = ["check_stdin", "stdin_lines"]

_LONGEST = 4096  # bytes of a line; a longer one is taken for several


def check_stdin(reader: str) -> None:
    """InputError where `reader` would find it closed."""
    if sys.stdin is None:
        raise InputError(f"{reader} reads stdin, which is closed; leave it open")


def stdin_lines() -> Iterator[str]:
    """Lines as they come, of whatever bytes, none longer than a few thousand."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as raw:
        while line := raw.readline(_LONGEST):
            yield line.decode("utf-8", "replace")
