"""`hub.resolve` in a process of its own: pull.py SHA256 SECONDS, the time a conversion takes."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from flamvid.weights import hub
from flamvid.weights.artefacts import ARTEFACTS, Artefact


def artefact(sha256: str, seconds: float = 0) -> Artefact:
    """A file of ten bytes in a wheel, which is converted to its reverse."""

    def convert(source: Path, out: Path) -> None:
        (out / "first.bin").write_bytes(b"first")
        (out / "first.bin").chmod(0o600)  # as safetensors does
        time.sleep(seconds)
        (out / "model.bin").write_bytes(source.read_bytes()[::-1])

    return Artefact(
        name="tiny-weights",
        kind="test",
        requirement="tiny-weights==1.0",
        sha256=sha256,
        member="tiny_weights/data.bin",
        licence="Apache-2.0",
        convert=convert,
    )


if __name__ == "__main__":
    # A shell that runs tests in the background ignores SIGINT, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ARTEFACTS["tiny-weights"] = artefact(sys.argv[1], float(sys.argv[2]))
    print(hub.resolve("tiny-weights"))
