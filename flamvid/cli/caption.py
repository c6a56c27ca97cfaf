"""`flamvid caption`: a sentence about each source, or one for each window of time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import (
    FAILED,
    OutputError,
    guarded,
    log_to_stderr,
    named,
    report,
    say,
)
from flamvid.cli.output import Format, Output, check_target, encoder, format_for, open_output
from flamvid.cli.progress import Progress, progress, quiet_libraries
from flamvid.cli.sources import existing, expand
from flamvid.errors import FlamvidError, InputError
from flamvid.text.shots import read_shots

if TYPE_CHECKING:
    from flamvid.api import Captioner
    from flamvid.types import Caption

__all__ = ["caption", "deliver", "load"]


@guarded
def caption(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Videos, pictures, folders of videos or frames, or quoted globs like '**/*.mp4'.",
        ),
    ],
    model: opt.Model = "flamvid-base",
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    start: opt.Start = None,
    end: opt.End = None,
    every: Annotated[
        float | None, typer.Option(help="A caption every so many seconds, each with its time.")
    ] = None,
    window: Annotated[
        float | None, typer.Option(help="Seconds that each of these looks at (as --every).")
    ] = None,
    segments: Annotated[
        bool, typer.Option(help="A caption for each scene, with its time, found by what is seen.")
    ] = False,
    beams: opt.Beams = 3,
    max_tokens: opt.MaxTokens = 20,
    min_tokens: opt.MinTokens = 0,
    length_penalty: opt.LengthPenalty = 1.0,
    no_repeat_ngram: opt.NoRepeatNgram = 0,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = 0,
    returns: Annotated[
        int, typer.Option(help="How many captions of each part, the likeliest first.")
    ] = 1,
    prompt: Annotated[str | None, typer.Option(help="Words that the caption begins with.")] = None,
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="By the end of --output's name, or else text."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, all at once.")
    ] = None,
    shots: opt.Shots = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    draft: opt.Draft = False,
    decode_timeout: opt.DecodeTimeout = None,
    verbose: opt.Verbose = False,
) -> int:
    """Describe videos and pictures, a sentence each.

    Captions go to stdout as they are made. A source that fails is named on stderr, the others are
    delivered, and the exit code is 1.
    """
    text = opt.TextOptions(
        frames=frames,
        fps=fps,
        start=start,
        end=end,
        every=every,
        window=window,
        beams=beams,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        length_penalty=length_penalty,
        no_repeat_ngram=no_repeat_ngram,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        returns=returns,
        prompt=prompt,
        decode_timeout=decode_timeout,
    )
    where = opt.ModelOptions(
        model=model, device=device, dtype=dtype, device_map=device_map, draft=draft
    )
    opt.check_draft(where, text)
    wanted = expand(sources)
    check_target(output, wanted)
    kind = format_for(Format, format, output)
    if kind in (Format.srt, Format.vtt) and len(wanted) > 1:
        raise InputError(
            f"--format {kind} describes one source, but {len(wanted)} are given; "
            "run once for each, or choose --format jsonl"
        )
    if kind in (Format.srt, Format.vtt) and returns > 1:
        raise InputError(
            f"--format {kind} has one caption for each time, but --returns is {returns}; "
            "choose --format jsonl"
        )
    if segments and every is not None:
        raise InputError(
            f"--every {every:g} and --segments, which end where scenes do, exclude each other"
        )
    examples = read_shots(shots, questions=False) if shots else []
    if verbose:
        tail = [f"--format={kind}", *([f"--output={output}"] if output else [])]
        tail += [f"--shots={shots}"] if shots else []
        tail += ["--segments"] if segments else []
        say(opt.command_line("caption", wanted, where, text, extra=tail))

    if len(wanted) == 1 and _never_ends(wanted[0]) and end is None:
        _check_watched(wanted[0], text, segments or bool(examples))
        return _watch(wanted[0], where, text, kind, output, verbose)
    found = existing(wanted)
    failed = len(wanted) - len(found)
    if not found:
        return FAILED
    encoding = encoder(kind, many=len(wanted) > 1, timed=segments or every is not None)
    with open_output(encoding, output) as out, progress(len(found)) as bar:
        captioner = load(where, bar, verbose)
        looked: dict[str, Any] = {"frames": frames, "fps": fps, "decode_timeout": decode_timeout}
        before = captioner.examples(examples, **looked) if examples else []
        more: dict[str, Any] = {**text.keywords(), **({"segments": True} if segments else {})}
        if before:
            more["shots"] = before
        for source in found:
            bar.show(named(source))
            made = captioner.iter_captions(source, **more)
            failed += not deliver(made, source, out, bar, verbose)
            bar.advance()
    return FAILED if failed else 0


def _never_ends(source: str) -> bool:
    """Whether a source is a camera or its stream, of which there would never be one caption."""
    return source.startswith(("rtsp://", "rtsps://", "rtmp://", "rtmps://", "cam:"))


def _check_watched(source: str, text: opt.TextOptions, more: bool) -> None:
    """Refuse what `flamvid live` can't do; more: whether there are --segments or --shots."""
    if text.start is not None or text.prompt or text.temperature or text.returns > 1 or more:
        raise InputError(
            f"{named(source)} never ends, so it is watched as by flamvid live, which has no "
            "--start, --prompt, --temperature, --returns, --segments and --shots; leave them out, "
            "or give --end"
        )


def _watch(
    source: str,
    where: opt.ModelOptions,
    text: opt.TextOptions,
    kind: Format,
    output: Path | None,
    verbose: bool,
) -> int:
    """What `flamvid live` does, with the settings of captions."""
    from flamvid.cli.live_run import LiveOptions, run

    every = text.every or 2.0
    fps = text.fps or (2.0 if text.frames is None else text.frames / (text.window or every))
    window = text.window if text.window is not None else (every if text.every else None)
    sinks = ("-" if output is None else str(output),)
    wanted = LiveOptions(fps=fps, every=every, window=window, sinks=sinks, format=kind)
    return run(source, where, wanted, text, verbose)


def load(where: opt.ModelOptions, bar: Progress, verbose: bool) -> Captioner:
    """The model, with libraries quiet and the time it took said if wanted."""
    quiet_libraries()
    if verbose:
        log_to_stderr()
    bar.show(f"loading {where.model}")
    began = time.perf_counter()
    captioner = where.load()
    if verbose:
        with bar.paused():
            say(f"flamvid: loaded {where.model} in {time.perf_counter() - began:.2f} s")
    return captioner


def deliver(
    captions: Iterable[Caption], source: str, out: Output, bar: Progress, verbose: bool
) -> bool:
    """Write what is made of one source; False, and a line on stderr, if that failed."""
    try:
        for made in captions:
            with bar.paused():
                out.write(made)
    except OutputError:
        raise
    except FlamvidError as error:
        with bar.paused():
            report(error, source)
    except Exception as error:  # one odd file must not take the other thousand with it
        with bar.paused():
            if verbose:
                say(traceback.format_exc())
            report(f"unexpected {type(error).__name__}: {error} (-v shows where)", source)
    else:
        return True
    return False
