"""`flamvid live`: captions of a stream as it goes on, in bounded memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import guarded
from flamvid.cli.live_run import LiveOptions, Memory, run
from flamvid.cli.output import Format
from flamvid.errors import InputError

__all__ = ["live"]


@guarded
def live(
    source: Annotated[
        str,
        typer.Argument(
            help="rtsp://, rtmp://, http(s):// (HLS, MJPEG, TS), cam:0, - (a pipe), or a file."
        ),
    ],
    model: opt.Model = "flamvid-base",
    every: Annotated[
        str | None, typer.Option(help="Time between captions, such as 2s or 500ms.")
    ] = None,
    on_change: Annotated[bool, typer.Option(help="Speak when the scene changes.")] = False,
    when_different: Annotated[
        float | None,
        typer.Option(help="Speak when the last caption has become so many nats a token less fit."),
    ] = None,
    on_demand: Annotated[
        bool, typer.Option(help="Speak when a line comes on stdin; one with words is a question.")
    ] = False,
    ask: Annotated[
        str | None, typer.Option(help="Answer this each time, instead of a caption.")
    ] = None,
    alert: Annotated[
        list[str] | None, typer.Option(help="Tell when what is seen matches this text.")
    ] = None,
    alert_threshold: Annotated[
        float, typer.Option(help="The cosine from which it counts as a match.")
    ] = 0.25,
    memory: Annotated[
        Memory, typer.Option(help="What becomes of frames older than the window.")
    ] = Memory.window,
    window: Annotated[
        float | None, typer.Option(help="Seconds that are remembered as they were.")
    ] = None,
    long: Annotated[int, typer.Option(help="Places of the long memory behind the window.")] = 8,
    max_memory: Annotated[
        str | None, typer.Option(help="Cap of the stream's memory, such as 512MB.")
    ] = None,
    context: Annotated[
        int, typer.Option(help="How many of the last captions the next one goes on from.")
    ] = 0,
    fps: Annotated[float, typer.Option(help="Frames per second to look at.")] = 2.0,
    latency_budget: Annotated[
        str | None, typer.Option(help="Leave work out when captions come later, such as 500ms.")
    ] = None,
    sink: Annotated[
        list[str] | None,
        typer.Option(
            "--sink",
            "-o",
            help="FILE (.txt .jsonl .srt .vtt), - , http(s)://HOOK or sse:PORT; more than once.",
        ),
    ] = None,
    format: Annotated[
        Format | None, typer.Option("--format", "-f", help="By the name of the file, or text.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Keep memory and text here, and go on from it.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep the video itself in this folder, in parts of a minute."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Append features and captions to this store, by the minute.")
    ] = None,
    realtime: Annotated[
        bool, typer.Option(help="Play a recording no faster than its time passes.")
    ] = False,
    timeout: Annotated[
        str, typer.Option(help="Connect anew when no frame comes for so long.")
    ] = "15s",
    queue: Annotated[int, typer.Option(help="Frames that may wait; more are dropped.")] = 8,
    hwaccel: Annotated[
        str | None, typer.Option(help="Decode by this hardware, by ffmpeg's name of it.")
    ] = None,
    beams: opt.Beams = 1,
    max_tokens: opt.MaxTokens = 20,
    min_tokens: opt.MinTokens = 0,
    length_penalty: opt.LengthPenalty = 1.0,
    no_repeat_ngram: opt.NoRepeatNgram = 0,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    verbose: opt.Verbose = False,
) -> int:
    """Describe a stream as it goes on, for as long as it does, in bounded memory.

    Cues go to stdout as they are made, or to every --sink. Ctrl-C ends it after a last caption.
    """
    if ask is not None and not ask.strip():
        raise InputError("--ask is empty; give a question, in quotes")
    text = opt.TextOptions(
        beams=beams,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        length_penalty=length_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )
    wanted = LiveOptions(
        fps=fps,
        every=_seconds("--every", every),
        on_change=on_change,
        when_different=when_different,
        on_demand=on_demand,
        memory=memory,
        window=window,
        long=long,
        max_memory=_bytes("--max-memory", max_memory),
        context=context,
        ask=(ask or "").strip(),
        alerts=tuple(alert or ()),
        alert_threshold=alert_threshold,
        budget=_seconds("--latency-budget", latency_budget),
        sinks=tuple(sink or ("-",)),
        format=format,
        state=state,
        record=record,
        store=store,
        realtime=realtime,
        timeout=_seconds("--timeout", timeout) or 15.0,
        queue=queue,
        hwaccel=hwaccel,
    )
    where = opt.ModelOptions(model=model, device=device, dtype=dtype)
    return run(source, where, wanted, text, verbose)


def _seconds(flag: str, text: str | None) -> float | None:
    """A duration: 2, 2s, 1.5s, 500ms, 1m."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", text.strip())
    if not match or float(match[1]) <= 0:
        raise InputError(f"{flag} is {text!r}; must be a time above 0, such as 2s or 500ms")
    return float(match[1]) * {"ms": 1e-3, "m": 60.0, "h": 3600.0}.get(match[2] or "s", 1.0)


def _bytes(flag: str, text: str | None) -> int | None:
    """A size: 512MB, 1.5GB, 64MiB; plain numbers are bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise InputError(f"{flag} is {text!r}; must be a size above 0, such as 512MB")
    power = "kmg".find(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
