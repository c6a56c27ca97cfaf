"""`flamvid frames`: the frames that a model would see, as pictures with their times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import OutputError, guarded, log_to_stderr, named, say
from flamvid.errors import InputError

if TYPE_CHECKING:
    from flamvid.types import Frames
    from flamvid.video.live import LiveSource
    from flamvid.video.sample import Sampling
    from flamvid.video.source import Source

__all__ = ["frames"]

_AT_ONCE = 64 << 20  # bytes of decoded pictures in memory


@guarded
def frames(
    source: Annotated[str, typer.Argument(help="A video, a picture or a folder of frames.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")],
    count: Annotated[
        int | None, typer.Option("--frames", help="So many, evenly spread (8).")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="So many per second, instead.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Those shown at these seconds, instead.")
    ] = None,
    start: opt.Start = None,
    end: opt.End = None,
    decode_timeout: opt.DecodeTimeout = None,
    verbose: opt.Verbose = False,
) -> int:
    """Write the frames shown at some times as PNG, and their pts to frames.jsonl.

    Pictures are named by their place in the order asked and by their time: 00001_0.500.png.
    """
    if sum(option is not None for option in (count, fps, at)) > 1:
        raise InputError("--frames, --fps and --at exclude each other; give one of them")
    times = _seconds(at) if at is not None else None
    # The rules for --fps, --start and the like are those of every command.
    opt.TextOptions(frames=count, fps=fps, start=start, end=end, decode_timeout=decode_timeout)
    if verbose:
        log_to_stderr()
    from flamvid import video
    from flamvid.video.live import LiveSource
    from flamvid.video.sample import Fps, Times, Uniform

    sampling: Sampling = Uniform(count or 8)
    if fps is not None:
        sampling = Fps(fps)
    elif times is not None:
        sampling = Times(times)
    with video.open_source(source, timeout=decode_timeout) as opened:
        if isinstance(opened, LiveSource):
            if fps is None:
                raise InputError(f"{named(source)} is live, of unknown length; give --fps")
            written = _write(_ticks(opened, fps, start or 0.0, end or math.inf), output)
        else:
            places = sampling.indices(opened.pts, opened.durations, start, end).tolist()
            at_times = times or [float(opened.pts[place]) for place in places]
            written = _write(zip(at_times, _each(opened, places), strict=True), output)
    say(f"flamvid: {written} frames in {output}")
    return 0


def _seconds(text: str) -> tuple[float, ...]:
    """The times of --at."""
    try:
        times = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        times = ()
    if not times or not all(math.isfinite(t) and t >= 0 for t in times):
        raise InputError(f"--at is {text!r}; must be seconds from 0 on, as in 0.5,2,7.25")
    return times


def _write(shown: Iterable[tuple[float, Frames]], folder: Path) -> int:
    """Pictures one by one, and a line about each as soon as it is on the disk."""
    from PIL import Image

    number = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "frames.jsonl").open("w", encoding="utf-8") as lines:
            for number, (time, frame) in enumerate(shown, 1):
                name = f"{number:05d}_{time:.3f}.png"
                Image.fromarray(frame.pixels[0].permute(1, 2, 0).numpy()).save(folder / name)
                facts = {
                    "file": name,
                    "time": time,
                    "pts": float(frame.pts_seconds[0]),
                    "duration": float(frame.duration_seconds[0]),
                }
                lines.write(json.dumps(facts) + "\n")
                lines.flush()
    except OSError as error:
        raise OutputError(f"can't write to {folder} ({error.strerror or error})") from error
    return number


def _each(source: Source, places: list[int]) -> Iterator[Frames]:
    """Frames one by one, read a few at a time however large they are."""
    from flamvid.types import Frames

    step, done = 1, 0
    while done < len(places):
        chunk = source.read(places[done : done + step])
        done += step
        for i in range(len(chunk)):
            yield Frames(
                chunk.pixels[i : i + 1],
                chunk.pts_seconds[i : i + 1],
                chunk.duration_seconds[i : i + 1],
            )
        step = max(1, _AT_ONCE // chunk.pixels[0].numel())


def _ticks(
    live: LiveSource, fps: float, start: float, end: float
) -> Iterator[tuple[float, Frames]]:
    """The frames of a stream shown at each tick of a part of it, until it ends or Ctrl-C."""
    for tick, frame in enumerate(live.frames(fps=fps)):
        time = (tick + 0.5) / fps
        if time >= end:
            return
        if time >= start:
            yield float(frame.pts_seconds[0]), frame
