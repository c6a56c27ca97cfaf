"""The options that caption and ask share: their help, their rules, and themselves as a command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from flamvid.errors import InputError

if TYPE_CHECKING:
    from flamvid.api import Captioner
    from flamvid.generate.config import Search

__all__ = [
    "Beams",
    "DecodeTimeout",
    "Device",
    "DeviceMap",
    "Draft",
    "Dtype",
    "End",
    "Fps",
    "Frames",
    "LengthPenalty",
    "MaxTokens",
    "MinTokens",
    "Model",
    "ModelOptions",
    "NoRepeatNgram",
    "Seed",
    "Shots",
    "Start",
    "Temperature",
    "TextOptions",
    "TopK",
    "TopP",
    "Verbose",
    "check_draft",
    "command_line",
]

Model = Annotated[
    str, typer.Option(help="Name of a model, its folder, checkpoint or .toml, or a hub id.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; CUDA if there is one.")]
Dtype = Annotated[
    str | None, typer.Option(help="fp32, bf16, fp16, or int8 (weights); the model's own if none.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="auto: lay a model too large for one device over all, memory and the disk."),
]
Draft = Annotated[
    bool,
    typer.Option(
        "--draft", help="The same text sooner, by guessing ahead; for fp32 on a CPU and --beams 1."
    ),
]
Frames = Annotated[
    int | None, typer.Option(help="How many frames to look at (what suits the model).")
]
Fps = Annotated[float | None, typer.Option(help="Frames per second to look at, instead.")]
Start = Annotated[float | None, typer.Option(help="Begin here, in seconds.")]
End = Annotated[float | None, typer.Option(help="Stop here, in seconds.")]
Beams = Annotated[int, typer.Option(help="Beams of the search; 1 is greedy.")]
MaxTokens = Annotated[int, typer.Option(help="Longest text, in tokens.")]
MinTokens = Annotated[int, typer.Option(help="Shortest text, in tokens.")]
NoRepeatNgram = Annotated[
    int, typer.Option(help="No so many tokens in a row stand twice in a text (0: they may).")
]
TopK = Annotated[int, typer.Option(help="Draw among so many likeliest tokens (0: all).")]
TopP = Annotated[float, typer.Option(help="Draw among the likeliest that sum to this much.")]
LengthPenalty = Annotated[float, typer.Option(help="Above 0 favours long texts.")]
DecodeTimeout = Annotated[
    float | None,
    typer.Option(help="Seconds that reading may take at once (as the source is long)."),
]
Shots = Annotated[
    Path | None,
    typer.Option(
        help="JSON lines of examples that come before: source, text, and question to ask."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of what --temperature draws.")]
Temperature = Annotated[float, typer.Option(help="Above 0 draws words at random; for --beams 1.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say on stderr what is run, and how long it took.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "flamvid-base"
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    draft: bool = False

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise InputError(
                f"--device {self.device} and --device-map {self.device_map} exclude each other"
            )

    def load(self) -> Captioner:
        """The captioner; this is where torch gets imported."""
        from flamvid import api

        return api.load(self.model, self.device, self.dtype, self.device_map, draft=self.draft)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """What to look at and how to search: the keywords of `Captioner.caption`, checked."""

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    every: float | None = None
    window: float | None = None
    beams: int = 3
    max_tokens: int = 20
    min_tokens: int = 0
    length_penalty: float = 0.0
    no_repeat_ngram: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    returns: int = 1
    seed: int = 0
    prompt: str | None = None
    decode_timeout: float | None = None

    def __post_init__(self) -> None:
        reals = ["fps", "start", "end", "every", "window"]
        reals += ["length_penalty", "temperature", "top_p", "decode_timeout"]
        for name in reals:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{_flag(name)} is {value}; must be a finite number")
        for name in ("frames", "beams", "max_tokens", "returns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{_flag(name)} is {value}; must be at least 1")
        for name in ("min_tokens", "no_repeat_ngram", "top_k"):
            if getattr(self, name) < 0:
                raise InputError(f"{_flag(name)} is {getattr(self, name)}; must be at least 0")
        if self.min_tokens > self.max_tokens:
            raise InputError(
                f"--min-tokens is {self.min_tokens}; must be at most --max-tokens, "
                f"which is {self.max_tokens}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p:g}; must be above 0 and at most 1")
        for name in ("fps", "every", "window", "decode_timeout"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{_flag(name)} is {value:g}; must be above 0")
        if self.start is not None and self.start < 0:
            raise InputError(f"--start is {self.start:g}; must be at least 0")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise InputError(
                f"--end is {self.end:g}; must be above --start, which is {self.start or 0.0:g}"
            )
        if self.temperature < 0:
            raise InputError(f"--temperature is {self.temperature:g}; must be at least 0")
        if self.temperature > 0 and self.beams > 1:
            raise InputError(
                f"--temperature {self.temperature:g} draws words, which {self.beams} beams do not; "
                "give --beams 1 as well"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise InputError(
                "--top-k and --top-p choose among words drawn at random; give --temperature as well"
            )
        if self.temperature == 0 and self.returns > self.beams:
            raise InputError(
                f"--returns is {self.returns}, but {self.beams} beams end in no more captions; "
                "give more --beams, or --temperature"
            )
        if self.frames is not None and self.fps is not None:
            raise InputError(f"--frames {self.frames} and --fps {self.fps:g} exclude each other")
        if self.window is not None and self.every is None:
            raise InputError(f"--window is {self.window:g} without --every; give --every as well")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; must be at least 0 and below 2**63")

    def search(self) -> Search:
        """Those of the search alone, as `GenerationConfig` takes them."""
        from flamvid.generate.config import Search

        known = Search.__annotations__  # some of which are no flags
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return cast("Search", chosen)

    def keywords(self, *leave: str) -> dict[str, int | float | str | None]:
        """As keyword arguments, except those named."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in leave}


def check_draft(where: ModelOptions, text: TextOptions) -> None:
    """Refuse a draft where several texts are written at a time."""
    for name, value in (("beams", text.beams), ("returns", text.returns)):
        if where.draft and value > 1:
            raise InputError(
                f"--draft guesses ahead for one text at a time, but --{name} is {value}; "
                f"give --{name} 1 as well, or leave --draft out"
            )


def command_line(
    verb: str, arguments: list[str], *options: ModelOptions | TextOptions, extra: Sequence[str] = ()
) -> str:
    """The command that does the same again, with every option that has a value spelled out.

    But for passwords in addresses: it is printed where others may read it.
    """
    from flamvid.video.address import shown

    words = ["flamvid", verb]
    for part in options:
        for field in fields(part):
            value = getattr(part, field.name)
            if value is True:
                words.append(_flag(field.name))
            elif value is not None and value is not False:
                # = keeps a value that starts with - from being read as a flag
                words.append(f"{_flag(field.name)}={value}")
    return shlex.join([*words, *extra, "--", *map(shown, arguments)])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
