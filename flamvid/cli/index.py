"""`flamvid index`: a library of videos into a feature store, once."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import FAILED, guarded, log_to_stderr, say
from flamvid.cli.live_stats import live_stats
from flamvid.cli.progress import working
from flamvid.errors import InputError

__all__ = ["index"]


class Engine(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


@guarded
def index(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Folders, videos, globs, lists (.csv, .jsonl, .txt, - for stdin), tars.",
        ),
    ] = None,
    store: Annotated[
        Path, typer.Option(help="The store's file; it is made if there is none.")
    ] = Path("lib.lmdb"),
    model: opt.Model = "flamvid-base",
    fps: Annotated[float | None, typer.Option(help="Frames per second that are kept (1).")] = None,
    frames: Annotated[
        int | None, typer.Option(help="So many per video, evenly spread, instead.")
    ] = None,
    caption: Annotated[
        bool,
        typer.Option(
            "--caption", help="Also say what each video shows, and store that; of known ones too."
        ),
    ] = False,
    store_dtype: Annotated[
        str, typer.Option(help="Of the stored features: float16, float32, or int8.")
    ] = "float16",
    workers: Annotated[
        int | None, typer.Option(help="Videos decoded at once (as there are cores).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Frames encoded at once (4 on a CPU, 16 on a GPU).")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th (from 0) of N parts.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed; all of it if no SOURCE.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(help="Only failures for this reason, with --retry-failed.")
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Look for new files so often, until Ctrl-C."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="ray spreads the work over a cluster (extra `cluster`).")
    ] = Engine.local,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; one on this machine if none.")
    ] = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    decode_timeout: opt.DecodeTimeout = None,
    verbose: opt.Verbose = False,
) -> int:
    """Turn videos into features that can be searched and trained on, once.

    What the store has already is left alone, so a run that was stopped goes on when it is started
    again. A source that fails is named on stderr and in the store, and the exit code is 1. At the
    end, and on Ctrl-C, the counts come on stdout, as JSON.
    """
    if not sources and not retry_failed:
        raise InputError("no source is given; name a folder, or --retry-failed")
    if reason is not None and not retry_failed:
        raise InputError(f"--reason is {reason!r} without --retry-failed; give that as well")
    if fps is not None and frames is not None:
        raise InputError(f"--frames {frames} and --fps {fps:g} exclude each other")
    if watch is not None and not (sources and 0 < watch < math.inf):
        raise InputError(f"--watch is {watch:g}; must be above 0 seconds, and needs a SOURCE")
    if watch is not None and "-" in (sources or []):
        raise InputError("--watch does not go with - (standard input), which is read once")
    if address is not None and engine is not Engine.ray:
        raise InputError(f"--address is {address} without --engine ray; give that as well")
    if engine is Engine.ray and watch is not None:
        raise InputError("--watch does not go with --engine ray; run it from time to time instead")

    with working(f"loading {model}"):
        from flamvid import library
        from flamvid.index.indexer import IndexConfig
        from flamvid.index.manifest import Shard, check
        from flamvid.store.writer import check_target

    config = IndexConfig(
        fps=1.0 if fps is None else fps,
        frames=frames,
        dtype=store_dtype,
        workers=(os.cpu_count() or 1) if workers is None else workers,
        timeout=decode_timeout,
        retry=(reason or "") if retry_failed else None,
    )
    part = Shard.parse(shard) if shard is not None else None
    check_target(store)
    if watch is None:  # what is watched may be there later
        check(sources or [])
    log_to_stderr(logging.INFO if verbose else logging.WARNING)

    with working(f"loading {model}"):
        where = opt.ModelOptions(model=model, device=device, dtype=dtype)
        loaded = None if engine is Engine.ray else where.load()
    stats = library.Stats()
    try:
        with live_stats() as listener:
            if loaded is None:
                with redirect_stdout(sys.stderr):  # Ray tells of lost machines there
                    library.index_on_ray(
                        sources or [],
                        store,
                        library.Cluster(
                            address=address, gpus=1 if (device or "").startswith("cuda") else 0
                        ),
                        model=model,
                        device=device,
                        dtype=dtype,
                        captions=caption,
                        batch=batch,
                        shard=part,
                        config=config,
                        listener=listener,
                        stats=stats,
                    )
            else:
                library.index(
                    sources or [],
                    store,
                    model=loaded,
                    captions=caption,
                    batch=batch,
                    shard=part,
                    watch=watch,
                    config=config,
                    listener=listener,
                    stats=stats,
                )
    except KeyboardInterrupt:  # what was done until then is in the store
        typer.echo(json.dumps(stats.report()))
        raise
    if not stats.found:
        say("flamvid: nothing was indexed: no video is there, or in this part, or failed so before")
    if stats.failed_before:
        say(
            f"flamvid: {stats.failed_before} sources failed before and were left alone; "
            "--retry-failed tries them again"
        )
    typer.echo(json.dumps(stats.report()))
    return FAILED if stats.failed + stats.failed_before else 0
