"""How this process uses the machine: its memory and its cores.

These settings are for our own command only: a library must not change the process of its host.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory", "prepare"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # malloc.h


def prepare() -> None:
    """To be called before torch is imported, which looks at the environment once."""
    _yield_cores()
    _forget_shapes()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Serve large blocks from the heap and leave it as it is; does nothing without glibc.

    glibc gives every large block back to the kernel when it is freed, and the next layer's output
    faults it in again page by page: to keep it nearly doubles the speed of a convnet on a CPU.
    Threads share one heap, for one of their own would hold 64 MiB at most.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 64 << 20)


def _yield_cores() -> None:
    """Let threads that wait for each other sleep instead of spin.

    On a machine that is busy with something else, a spinning thread takes the core that the one it
    waits for needs: a caption that takes half a second then takes twenty (tools/bench/busy.py). On
    an idle machine sleeping costs a twentieth.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _forget_shapes() -> None:
    """Let oneDNN, and torch in front of it, keep what they made for the last shapes, not for 1024.

    Texts are of all lengths, and each is a shape for every kind of layer: training in bfloat16 grew
    by 20 MB from update to update. What is thrown away is made again in no time that counts.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
