"""A `flamvid.api` without a model: sources say by their name what becomes of them."""

from __future__ import annotations

import math
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flamvid.errors import DecodeError, InputError, OfflineError
from flamvid.types import Caption


class FakeChat:
    def __init__(self, captioner: FakeCaptioner) -> None:
        self.captioner = captioner
        self.left_out = 0

    def show(self, source: str, start: float | None = None, end: float | None = None) -> None:
        self.captioner.calls.append((source, {"start": start, "end": end}))
        if "broken" in source:
            raise DecodeError(f"{source} is truncated")

    def say(self, question: str, on_text: Any = None) -> str:
        self.captioner.calls.append((question, {}))
        self.left_out += "again" in question
        for piece in ("two", " dogs") if on_text else ():
            on_text(piece)
        return "two dogs"

    def forget(self) -> None:
        self.captioner.calls.append(("forget", {}))


class FakeCaptioner:
    name = "fake"

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def iter_captions(self, source: str, **keywords: Any) -> Iterator[Caption]:
        self.calls.append((source, keywords))
        name = Path(source).name
        if "broken" in name:
            raise DecodeError(f"{source} ends in the middle of a frame;\nit is truncated")
        if "bug" in name:
            raise ZeroDivisionError("division by zero")
        if "slow" in name:
            if "part" in name:
                yield self._made(source, 0.0, 5.0, "a dog runs")
            time.sleep(60)
        logprob = math.nan if "nan" in name else -1.5
        text = "ein <Hund> läuft & bellt --> laut" if "odd" in name else "a dog runs"
        every = keywords["every"]
        starts = [0.0] if every is None else [every * i for i in range(3)]
        for start in starts:
            yield self._made(source, start, start + (every or 10.0), text, logprob)

    def ask(self, source: str, question: str, **keywords: Any) -> Caption:
        self.calls.append((source, {"question": question, **keywords}))
        if "broken" in source:
            raise DecodeError(f"{source} is truncated")
        return self._made(source, 0.0, 2.0, "two")

    def examples(self, shots: Any, **keywords: Any) -> list[Any]:
        self.calls.append(("examples", keywords))
        return list(shots)

    def chat(self, **keywords: Any) -> FakeChat:
        self.calls.append(("chat", keywords))
        return FakeChat(self)

    def _made(
        self, source: str, start: float, end: float, text: str, logprob: float = -1.5
    ) -> Caption:
        return Caption(
            source=source, start=start, end=end, text=text, logprob=logprob, model=self.name
        )


def build() -> tuple[types.ModuleType, FakeCaptioner]:
    """A module to stand where `flamvid.api` would, and its one captioner."""
    captioner = FakeCaptioner()

    def load(
        model: str = "",
        device: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        draft: bool = False,
    ) -> FakeCaptioner:
        captioner.loads.append(f"{model}, with a draft" if draft else model)
        if model == "far":
            raise OfflineError("far is not in the cache and FLAMVID_OFFLINE is set")
        if dtype not in (None, "float32"):
            raise InputError(f"dtype is {dtype!r}; must be float32")
        return captioner

    module = types.ModuleType("flamvid.api")
    module.load = load  # type: ignore[attr-defined]
    return module, captioner


def main() -> None:
    """The command as in a terminal, with the fake behind it."""
    import flamvid
    from flamvid.cli.main import main as real

    # A shell that runs tests in the background ignores SIGINT, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, _ = build()
    sys.modules["flamvid.api"] = module
    flamvid.api = module  # type: ignore[attr-defined]
    real()


if __name__ == "__main__":
    main()
