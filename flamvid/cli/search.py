"""`flamvid search`: the parts of a library that show what a text says, or another clip shows."""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flamvid.cli import hits
from flamvid.cli import options as opt
from flamvid.cli.failure import guarded, log_to_stderr, say
from flamvid.cli.output import check_target, format_for
from flamvid.cli.progress import working
from flamvid.errors import InputError

__all__ = ["search"]


class Format(StrEnum):
    """How hits are written."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    html = "html"
    png = "png"


class Kind(StrEnum):
    """Of an approximate index."""

    ivf = "ivf"
    hnsw = "hnsw"


@guarded
def search(
    store: Annotated[Path, typer.Argument(help="What flamvid index wrote.")],
    query: Annotated[str | None, typer.Argument(help="What is to be seen.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="A picture or clip that shows it, instead.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Of --like: begin here, in seconds.")] = None,
    end: Annotated[float | None, typer.Option(help="Of --like: stop here, in seconds.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", help="How many hits.")] = 10,
    window: Annotated[float, typer.Option(help="Seconds that a hit is long.")] = 4.0,
    every: Annotated[
        float | None, typer.Option(help="Seconds from one window to the next (half a window).")
    ] = None,
    path: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only videos whose path matches.")
    ] = None,
    shortest: Annotated[float, typer.Option(help="Only videos of at least so many seconds.")] = 0.0,
    longest: Annotated[
        float | None, typer.Option(help="Only videos of at most so many seconds.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only files changed then or since.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Only older files.")] = None,
    approximate: Annotated[
        Kind | None,
        typer.Option(help="For millions of windows: a FAISS index, which may miss some. -v tells."),
    ] = None,
    effort: Annotated[
        int | None, typer.Option(help="Of --approximate: more misses fewer (ivf 64, hnsw 256).")
    ] = None,
    model: opt.Model = "flamvid-base",
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="By the end of --output's name, or else text."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, all at once.")
    ] = None,
    verbose: opt.Verbose = False,
) -> int:
    """Find the parts of indexed videos that show something.

    A hit is a range of time, with the command that cuts it out. html and png are contact sheets
    with a picture of each.
    """
    kind = format_for(Format, format, output)
    if kind is Format.png and output is None:
        raise InputError("a png is no text; give --output FILE.png as well")
    check_target(output, [])
    where = opt.ModelOptions(model=model, device=device, dtype=dtype)
    if verbose:
        log_to_stderr()
    with working(f"searching {store}"):
        from flamvid import library
        from flamvid.index.search import Filter

    chosen = Filter(
        path=path,
        shortest=shortest,
        longest=math.inf if longest is None else longest,
        after=_date("--after", after, -math.inf),
        before=_date("--before", before, math.inf),
    )
    with working(f"searching {store} by {model}"):
        found = library.search(
            store,
            query,
            like=like,
            start=start,
            end=end,
            top=top,
            window=window,
            every=every,
            chosen=chosen,
            approximate=approximate,
            effort=effort,
            model=where.load,
        )
    if not found:
        say("flamvid: nothing was found: the store is empty, or no video passes the filters")
    title = query if query is not None else f"like {like}"
    hits.write(found, kind, output, title)
    return 0


def _date(flag: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{flag} is {text!r}; must be a date such as 2026-01-31, or with a time T18:00"
        ) from error
