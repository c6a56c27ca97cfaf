"""The parent's side of decode children: deadlines, crashes as errors, and a few children kept warm.

Each open file has a child to itself; a child whose file was closed waits for the next one. What
belongs to another process (after a fork) is never used.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError, DecoderLost
from flamvid.video.shared import create

__all__ = ["Child", "borrow", "give_back", "warm_up"]

_MEMORY = 4 << 30  # bytes of address space; FLAMVID_DECODE_MEMORY replaces it
_MOST_IDLE = 4
_AHEAD = 1 << 14  # bytes that are read at once, where fewer are wanted: most whole answers
_MOST_BYTES = 1 << 32  # of one array
_ROOT = str(Path(__file__).parents[2])

Answer = tuple[dict[str, Any], list[NDArray[Any]]]


class Child:
    """One decode process. It is asked one thing at a time, and is dead once it failed to answer."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        environment = {"FLAMVID_DECODE_MEMORY": str(_MEMORY), **os.environ, "PYTHONPATH": path}
        self.owner = os.getpid()
        self._owed = 0  # answers that nobody waited for
        shared = create()
        self._board = shared and shared[1]
        if shared:
            environment["FLAMVID_DECODE_BOARD"] = str(shared[0])
        self._process = subprocess.Popen(
            # -P: the folder that the user stands in holds no modules of ours.
            [sys.executable, "-P", "-m", "flamvid.video.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            pass_fds=[shared[0]] if shared else [],
        )
        if shared:
            os.close(shared[0])
        assert self._process.stdout is not None
        _widen(self._process.stdout)
        self._ahead = b""  # of what it said, that which was read and not yet looked at
        self._poll = select.poll()
        self._poll.register(self._process.stdout.fileno(), select.POLLIN)
        self._kill = weakref.finalize(self, _kill, self._process, self.owner)

    def ask(
        self,
        verb: str,
        timeout: float,
        each: Callable[[int, NDArray[Any]], None] | None = None,
        **request: Any,
    ) -> Answer:
        """The answer and its arrays; `DecodeError` if it is one, `DecoderLost` if none comes.

        each: gets the frames of the answer, each with its place, of which it keeps copies; its
        `ValueError` says that one is not what was asked for.
        """
        deadline = time.monotonic() + timeout
        try:
            self._send(verb, request)
            while self._owed:
                self._receive(deadline)
                self._owed -= 1
            head, arrays = self._receive(deadline)
            while "more" in head:
                if each is None or len(arrays) != 1:
                    raise ValueError("no parts were asked for")
                each(head["at"], arrays[0])
                head, arrays = self._receive(deadline)
            for at, where, height, width in head.get("board", ()):
                if each is None or self._board is None:
                    raise ValueError("no frames were asked for")
                each(at, self._board.get(where, (height, width, 3)))
        except TimeoutError:
            self.kill()
            raise DecoderLost(
                f"decoding gave no answer in {timeout:.0f} s and was stopped; "
                "give it longer with --decode-timeout if the file is sound"
            ) from None
        except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
            raise DecoderLost(self._obituary()) from error
        except BaseException:  # interrupted: the rest of the answer will never be read
            self.kill()
            raise
        if "error" in head:
            raise (DecoderLost if "last" in head else DecodeError)(head["error"])
        return head, arrays

    def tell(self, verb: str) -> None:
        """Ask for something whose answer does not matter, and do not wait for it."""
        if not self.alive:
            return
        with contextlib.suppress(OSError):  # it has gone just now, as who asks next will find
            self._send(verb, {})
            self._owed += 1

    def _send(self, verb: str, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"verb": verb, **request}).encode() + b"\n")

    def _receive(self, deadline: float) -> Answer:
        (length,) = struct.unpack("<I", self._read(np.empty(4, np.uint8), deadline))
        head = json.loads(bytes(self._read(np.empty(length, np.uint8), deadline)))
        return head, [self._array(a["dtype"], a["shape"], deadline) for a in head["arrays"]]

    def kill(self) -> None:
        """End the process at once."""
        self._kill()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._kill.alive and self._process.poll() is None

    def _array(self, dtype: str, shape: list[int], deadline: float) -> NDArray[Any]:
        kind = np.dtype(dtype)
        if kind.kind not in "fiu" or int(np.prod(shape)) * kind.itemsize > _MOST_BYTES:
            raise ValueError("no array that was asked for")
        array = np.empty(shape, kind)
        self._read(array, deadline)
        return array

    def _read(self, into: NDArray[Any], deadline: float) -> NDArray[Any]:
        """Fill an array; TimeoutError at the deadline, EOFError when the process is gone."""
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        view = memoryview(into.reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):
            if not self._ahead:
                left = deadline - time.monotonic()
                if left <= 0 or not self._poll.poll(left * 1000):
                    raise TimeoutError
                if len(view) - done >= _AHEAD:
                    done += self._some(os.readv(out, [view[done:]]))
                    continue
                self._ahead = os.read(out, _AHEAD)
                self._some(len(self._ahead))
            taken = self._ahead[: len(view) - done]
            self._ahead = self._ahead[len(taken) :]
            view[done : done + len(taken)] = taken
            done += len(taken)
        return into

    @staticmethod
    def _some(count: int) -> int:
        if count == 0:
            raise EOFError
        return count

    def _obituary(self) -> str:
        self.kill()
        code = self._process.wait()
        # Our own kill may have come first: then the answer was no answer.
        if code < 0 and code != -signal.SIGKILL:
            return f"the decoder crashed on it ({signal.Signals(-code).name}); the file is damaged"
        return "the decoder gave up on it; the file is damaged, or needs more memory than allowed"


def _widen(pipe: Any) -> None:
    """A pipe that takes a few frames at once: each filling of it costs two switches of process."""
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # over the user's share: it works as it is
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork's copy: the process is its parent's
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()


_lock = threading.Lock()
_idle: list[Child] = []


def borrow() -> Child:
    """A child for one file: an idle one, else a new one."""
    with _lock:
        while _idle:
            child = _idle.pop()
            if child.owner == os.getpid() and child.alive:
                return child
    return Child()


def give_back(child: Child) -> None:
    """Keep a child for the next file, without the one that it has open; a dead one is ended."""
    if child.owner != os.getpid():
        return
    child.tell("close")  # or it would go on reading ahead
    _keep(child)


def warm_up() -> None:
    """Start a child now, so that it is ready when the first file is opened."""
    _keep(borrow())


def _keep(child: Child) -> None:
    with _lock:
        if child.alive and len(_idle) < _MOST_IDLE:
            _idle.append(child)
            return
    child.kill()


def _after_fork() -> None:
    """A forked process starts without children; the lock may have been held by another thread."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
