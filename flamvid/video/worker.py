"""The child that decodes: a hang, a crash or a flood of memory ends here and not in the caller.

It reads requests, one JSON line each, from stdin, and answers on what was stdout: the length of a
JSON head in four bytes, the head, and the arrays that the head announces, as raw bytes. It has no
torch and holds one file at a time.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.types import VideoInfo
from flamvid.video.av_file import AvFile, open_container
from flamvid.video.describe import describe
from flamvid.video.policy import check_size, forward_reason
from flamvid.video.reader import Distrusted, Reader
from flamvid.video.shared import Board, attach

__all__ = ["main"]

_LAST_EXACT = 2.0**14  # seconds: decord's are float32, a millisecond apart from there on
# Codecs of which decord 3.4 hands out neighbours of the frames asked for, where B-frames are.
_REORDERED_BY_DECORD = frozenset({"hevc", "mpeg4", "mpeg2video", "mpeg1video"})

_TOO_LARGE = (
    "decoding takes more memory than is allowed; ask for smaller frames, or allow more bytes "
    "with FLAMVID_DECODE_MEMORY"
)

Answer = tuple[dict[str, Any], list[NDArray[Any]]]


class _Service:
    """One open file, and the requests about it."""

    def __init__(self, board: Board | None) -> None:
        self.board = board
        self.reader: Reader | None = None

    def open(self, path: str, size: list[int] | None, decoder: str | None) -> Answer:
        """Index a file with the first decoder that can be trusted with it."""
        self.close()
        container = open_container(path)
        info = describe(path, container)
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
        self.reader, reason = _choose(path, container, info, wanted, decoder)
        if self.reader is None:
            return {"info": asdict(info), "reader": None, "reason": reason}, []
        info = replace(info, frames=len(self.reader.pts))
        head = {"info": asdict(info), "reader": self.reader.name, "reason": reason}
        return head, [self.reader.pts, self.reader.durations]

    def describe(self, path: str) -> Answer:
        """Facts that only decoding tells."""
        with open_container(path) as container:
            return {"info": asdict(describe(path, container, rotation=True))}, []

    def keyframes(self) -> Answer:
        """Places of the key frames."""
        assert self.reader is not None
        return {}, [self.reader.keyframes()]

    def read(self, places: list[int]) -> Iterator[Answer]:
        """Frames, uint8 [H,W,3]: on the board while it has room, then each on its way at once."""
        assert self.reader is not None
        written: list[tuple[int, int, int, int]] = []
        if self.board is not None:
            self.board.clear()
        for at, pixels in self.reader.read(places):
            where = None if self.board is None else self.board.put(pixels)
            if where is None:
                yield {"at": at, "more": True}, [pixels]
            else:
                written.append((at, where, *pixels.shape[:2]))
        yield {"board": written}, []

    def close(self) -> Answer:
        """Let go of the file, and of the frame that its own side data hold in a cycle."""
        self.reader = None
        gc.collect()
        return {}, []


def _choose(
    path: str, container: Any, info: VideoInfo, size: tuple[int, int] | None, decoder: str | None
) -> tuple[Reader | None, str]:
    """The decoder for random access and why; None where all would be wrong.

    PyAV checks every frame it gives, and the container is open already. decord takes as long or
    longer, and of some codecs gives other frames than ffmpeg shows (docs/adr/0005): it and
    torchcodec are there for who asks for them.
    """
    asked = "FLAMVID_DECODER asks for it"
    if decoder == "torchcodec":
        from flamvid.video.torchcodec_file import TorchcodecFile

        return TorchcodecFile(path, container, info.stream, size), asked
    why = asked if decoder == "av" else ""
    if decoder == "decord":
        why = _decord_reason(info, size)
        if not why:
            try:
                from flamvid.video.decord_file import DecordFile

                return DecordFile(path, size, info.frames), asked
            except Distrusted as distrust:
                why = str(distrust)
    try:
        reader = AvFile(container, info.stream, size)
        return reader, "every frame checked" + (f": {why}" if why else "")
    except Distrusted as distrust:
        return None, "; ".join(filter(None, (why, str(distrust))))


def _decord_reason(info: VideoInfo, size: tuple[int, int] | None) -> str:
    """Why decord can't read it right, or empty: the streams, shapes and times it does not know."""
    if info.video_streams > 1:
        return f"{info.video_streams} video streams"
    if info.pixel_aspect != 1 and size is None:
        return "pixels that are not square"
    if "avi" in info.container.split(","):
        return "a container without pts"
    if info.codec in _REORDERED_BY_DECORD:
        return f"decord gives other frames of {info.codec} than ffmpeg shows"
    if abs(info.start) + info.duration > _LAST_EXACT:
        return f"times over {_LAST_EXACT:.0f} s, which decord rounds"
    return ""


def serve(requests: IO[bytes], answers: IO[bytes], board: Board | None = None) -> None:
    """Answer until the parent is gone."""
    service = _Service(board)
    for line in requests:
        for head, arrays in _answers(service, json.loads(line)):
            head["arrays"] = [{"dtype": a.dtype.str, "shape": a.shape} for a in arrays]
            line = json.dumps(head).encode()
            answers.write(struct.pack("<I", len(line)) + line)
            for array in arrays:
                answers.write(array.data)
            answers.flush()


def _answers(service: _Service, request: dict[str, Any]) -> Iterator[Answer]:
    """The parts of an answer, ready to be sent, so that an error never falls within one."""
    verb = getattr(service, request.pop("verb"))
    try:
        answer = verb(**request)
        for head, arrays in answer if isinstance(answer, Iterator) else (answer,):
            yield head, [np.ascontiguousarray(array) for array in arrays]
    except DecodeError as error:
        yield {"error": str(error)}, []
    except MemoryError:
        # No other decoder is to try it: that one would get the memory which this one may not have.
        yield {"error": _TOO_LARGE, "last": True}, []
    except Exception as error:  # a decoder may raise anything; the parent names the file
        yield {"error": f"{type(error).__name__}: {error}"}, []


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
    descriptor = os.environ.get("FLAMVID_DECODE_BOARD")
    gc.freeze()  # what is here now stays: to look through it takes longer than to open a file
    serve(sys.stdin.buffer, answers, attach(int(descriptor)) if descriptor else None)


if __name__ == "__main__":
    main()
