"""How many samples each shard has: counted once, and kept in the cache until the shard changes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from flamvid.data.files import failing, is_remote, system_of
from flamvid.weights.hub import cache_dir

__all__ = ["counted"]


def counted(files: Sequence[str], how: str, count: Callable[[int], int]) -> tuple[int, ...]:
    """Samples in each file. how: what the count depends on beside the file; count: of one file.

    Counting reads every file's headers: minutes for thousands of them, and every run needs it.
    """
    names = [name if is_remote(name) else os.path.abspath(name) for name in files]
    digest = sha256("\n".join([how, *names]).encode()).hexdigest()[:24]
    path = cache_dir() / "counts" / f"{digest}.json"
    known: dict[str, list[int | str]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = dict(json.loads(path.read_text(encoding="utf-8")))

    out = []
    for at, name in enumerate(names):
        stamp = _stamp(name)
        if known.get(name, [""])[0] != stamp:
            known[name] = [stamp, count(at)]
        out.append(int(known[name][1]))
    with contextlib.suppress(OSError):  # a cache that can't be written costs time alone
        _write(path, known)
    return tuple(out)


def _stamp(address: str) -> str:
    """What changes when a file does."""
    if is_remote(address):
        with failing(address):
            system, where = system_of(address)
            return f"{system.ukey(where)} {system.size(where)}"
    with failing(address):
        status = os.stat(address)
    return f"{status.st_size} {status.st_mtime_ns}"


def _write(path: Path, known: dict[str, list[int | str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(known), encoding="utf-8")
    part.replace(path)
