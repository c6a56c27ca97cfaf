"""The child that decodes: a hang, a crash or a flood of memory ends here and not in the caller.

It reads requests, one JSON line each, from stdin, and answers on what was stdout: the length of a
JSON head in four bytes, the head, and the arrays that the head announces, as raw bytes. It has no
torch and holds one file at a time.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import asdict, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.types import VideoInfo
from flamvid.video.describe import describe
from flamvid.video.policy import check_size, forward_reason
from flamvid.video.reader import Distrusted, Reader

__all__ = ["main"]

_LAST_EXACT = 2.0**14  # seconds: decord's are float32, a millisecond apart from there on

Answer = tuple[dict[str, Any], list[NDArray[Any]]]


class _Service:
    """One open file, and the requests about it."""

    def __init__(self) -> None:
        self.reader: Reader | None = None

    def open(self, path: str, size: list[int] | None, decoder: str | None) -> Answer:
        """Index a file with the first decoder that can be trusted with it."""
        self.close()
        info = describe(path)
        check_size(path, info.width, info.height)
        reason = forward_reason(
            info.container,
            transfer=info.transfer,
            interlaced=info.interlaced,
            pixel_format=info.pixel_format,
        )
        if reason is not None:
            return {"info": asdict(info), "reader": None, "reason": reason}, []
        wanted = (size[0], size[1]) if size else None
        self.reader, reason = _choose(path, info, wanted, decoder)
        if self.reader is None:
            return {"info": asdict(info), "reader": None, "reason": reason}, []
        info = replace(info, frames=len(self.reader.pts))
        head = {"info": asdict(info), "reader": self.reader.name, "reason": reason}
        return head, [self.reader.pts, self.reader.durations]

    def describe(self, path: str) -> Answer:
        """Facts that only decoding tells."""
        return {"info": asdict(describe(path, rotation=True))}, []

    def keyframes(self) -> Answer:
        """Places of the key frames."""
        assert self.reader is not None
        return {}, [self.reader.keyframes()]

    def read(self, indices: list[int]) -> Answer:
        """Frames, uint8 [T,H,W,3]."""
        assert self.reader is not None
        return {}, [self.reader.read(indices)]

    def close(self) -> Answer:
        """Let go of the file."""
        self.reader = None
        return {}, []


def _choose(
    path: str, info: VideoInfo, size: tuple[int, int] | None, decoder: str | None
) -> tuple[Reader | None, str]:
    """The decoder for random access and why; None where all would be wrong.

    decord comes first. It can't be told which stream to read, nor to make pixels square; where its
    index has a fault, PyAV may know better, and checks every frame it gives.
    """
    if decoder == "torchcodec":
        from flamvid.video.torchcodec_file import TorchcodecFile

        return TorchcodecFile(path, info.stream, size), "FLAMVID_DECODER asks for it"
    why = "FLAMVID_DECODER asks for it" if decoder else ""
    if not decoder:
        if info.video_streams > 1:
            why = f"{info.video_streams} video streams"
        elif info.pixel_aspect != 1 and size is None:
            why = "pixels that are not square"
        elif "avi" in info.container.split(","):
            why = "a container without pts"
        elif abs(info.start) + info.duration > _LAST_EXACT:
            why = f"times over {_LAST_EXACT:.0f} s, which decord rounds"
        if not why:
            try:
                from flamvid.video.decord_file import DecordFile

                return DecordFile(path, size, info.frames), "its index and its count agree"
            except Distrusted as distrust:
                why = str(distrust)
    try:
        from flamvid.video.av_file import AvFile

        return AvFile(path, info.stream, size), f"every frame checked: {why}"
    except Distrusted as distrust:
        return None, f"{why}; {distrust}"


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the parent is gone."""
    service = _Service()
    for line in requests:
        request = json.loads(line)
        verb = getattr(service, request.pop("verb"))
        arrays: list[NDArray[Any]] = []
        try:
            head, arrays = verb(**request)
        except DecodeError as error:
            head = {"error": str(error)}
        except MemoryError:
            head = {"error": "decoding takes more memory than is allowed"}
        except Exception as error:  # a decoder may raise anything; the parent names the file
            head = {"error": f"{type(error).__name__}: {error}"}
        head["arrays"] = [{"dtype": a.dtype.str, "shape": a.shape} for a in arrays]
        line = json.dumps(head).encode()
        answers.write(struct.pack("<I", len(line)) + line)
        for array in arrays:
            answers.write(np.ascontiguousarray(array).data)
        answers.flush()


def _limit_memory(limit: int) -> None:
    """Bound the address space: an allocation beyond it fails instead of taking the machine down."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """The child's whole life."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=1 << 20)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print where they like
    # decord loads every CUDA library that pip has installed, gigabytes for decoding on a CPU.
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    _limit_memory(int(os.environ["FLAMVID_DECODE_MEMORY"]))
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
