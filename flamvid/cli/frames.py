"""`flamvid frames`: the frames that a model would see, as pictures with their times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import OutputError, guarded, log_to_stderr, say
from flamvid.cli.progress import progress
from flamvid.errors import InputError

if TYPE_CHECKING:
    from flamvid.types import Frames
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
    from flamvid.video.sample import Fps, Times, Uniform

    sampling: Sampling = Uniform(count or 8)
    if fps is not None:
        sampling = Fps(fps)
    elif times is not None:
        sampling = Times(times)
    with video.open(source, timeout=decode_timeout) as opened:
        places = sampling.indices(opened.pts, opened.durations, start, end).tolist()
        named = times or [float(opened.pts[place]) for place in places]
        _write(opened, places, list(named), output)
    say(f"flamvid: {len(places)} frames in {output}")
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


def _write(source: Source, places: list[int], times: list[float], folder: Path) -> None:
    """Pictures one by one, and a line about each as soon as it is on the disk."""
    from PIL import Image

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            (folder / "frames.jsonl").open("w", encoding="utf-8") as lines,
            progress(len(places)) as bar,
        ):
            number = 0
            for chunk in _chunks(source, places):
                for pixels, pts, duration in zip(
                    chunk.pixels, chunk.pts_seconds, chunk.duration_seconds, strict=True
                ):
                    name = f"{number + 1:05d}_{times[number]:.3f}.png"
                    bar.show(name)
                    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
                    facts = {
                        "file": name,
                        "time": times[number],
                        "pts": float(pts),
                        "duration": float(duration),
                    }
                    lines.write(json.dumps(facts) + "\n")
                    lines.flush()
                    number += 1
                    bar.advance()
    except OSError as error:
        raise OutputError(f"can't write to {folder} ({error.strerror or error})") from error


def _chunks(source: Source, places: list[int]) -> Iterator[Frames]:
    """The frames a few at a time, however large they are."""
    first = source.read(places[:1])
    yield first
    step = max(1, _AT_ONCE // max(first.pixels.numel(), 1))
    for at in range(1, len(places), step):
        yield source.read(places[at : at + step])
