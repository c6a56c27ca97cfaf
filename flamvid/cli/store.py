"""`flamvid store`: what a feature store holds, whether it is whole, and how it is put in order."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flamvid.cli.failure import FAILED, guarded, one_line, report
from flamvid.cli.progress import working
from flamvid.errors import InputError

if TYPE_CHECKING:
    from flamvid.store.audit import Finding

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look after stores of features.")

Store = Annotated[Path, typer.Argument(metavar="PATH", help="A store.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command()
@guarded
def info(path: Store, as_json: AsJson = False) -> int:
    """Say what a store holds, and what made its features."""
    from flamvid.store import FeatureStore

    snapshot = FeatureStore(path).snapshot()
    records = [snapshot[video].record for video in snapshot]
    failures = snapshot.failures()
    facts: dict[str, Any] = {
        "videos": len(records),
        "hours": sum(record.duration for record in records) / 3600,
        "frames": sum(record.stored for record in records),
        "captions": sum(len(record.captions) for record in records),
        "failures": len(failures),
        "bytes": path.stat().st_size,
        **asdict(snapshot.provenance),
    }
    if as_json:
        facts["failed"] = [asdict(failure) for failure in failures]
        typer.echo(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        typer.echo(f"{name:<14}  {one_line(_shown(value))}")
    for failure in failures:
        times = "once" if failure.count == 1 else f"{failure.count} times"
        typer.echo(
            one_line(f"failed {times}: {failure.source}: {failure.reason}: {failure.message}")
        )
    return 0


@app.command("list")
@guarded
def list_(path: Store, as_json: AsJson = False) -> int:
    """List the videos of a store: id, seconds, path, and what was said of each."""
    from flamvid.store import FeatureStore

    snapshot = FeatureStore(path).snapshot()
    records = sorted((snapshot[video].record for video in snapshot), key=lambda r: (r.path, r.id))
    if as_json:
        rows = [{"id": record.id, **asdict(record)} for record in records]
        typer.echo(json.dumps(rows, indent=2))
        return 0
    for record in records:
        said = [one_line(text) for text in (record.path, *(c.text for c in record.captions))]
        typer.echo("  ".join([record.id, f"{record.duration:.1f} s", *said]))
    return 0


@app.command()
@guarded
def verify(path: Store, as_json: AsJson = False) -> int:
    """Read every byte of a store and check it; exit with 1 if anything is not as it was written."""
    from flamvid.store.audit import verify

    with working(f"reading {path}"):
        outcome = verify(path)
    if as_json:
        typer.echo(json.dumps(asdict(outcome), indent=2))
    else:
        unfinished = f", {outcome.partial} unfinished" if outcome.partial else ""
        sealed = {True: "sealed", False: "its seal does not fit", None: "not closed in order"}
        typer.echo(
            f"{one_line(str(path))}: {outcome.videos} videos{unfinished}, {outcome.chunks} chunks, "
            f"{outcome.failures} failures, {outcome.size:,} bytes, {sealed[outcome.sealed]}: "
            + (f"{len(outcome.findings)} problems" if outcome.findings else "all right")
        )
    _list(outcome.findings, path)
    return FAILED if outcome.findings else 0


@app.command()
@guarded
def repair(path: Store) -> int:
    """Drop what is broken, list it, and keep all else.

    A video with a broken piece is dropped from there on; index it again to have it back.
    """
    from flamvid.store.maintain import repair

    with working(f"reading {path}"):
        outcome = repair(path)
    _list(outcome.dropped, path)
    beginnings = f" and the beginnings of {outcome.partial}" if outcome.partial else ""
    verdict = "repaired" if outcome.found else "nothing was broken"
    typer.echo(f"{one_line(str(path))}: {verdict}; it holds {outcome.kept} videos{beginnings}")
    return 0


@app.command()
@guarded
def merge(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A store, made if need be.")],
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Stores to add.")],
) -> int:
    """Add the videos of stores to one; those it has already get captions at most."""
    from flamvid.store.maintain import merge

    with working(f"merging into {target}"):
        outcome = merge(target, sources)
    _list(outcome.damaged, target)
    told = f", {outcome.told} of them have captions now" if outcome.told else ""
    counts = f"{outcome.added} added, {outcome.present} were there{told}"
    typer.echo(f"{one_line(str(target))}: {counts}")
    return FAILED if outcome.damaged else 0


@app.command()
@guarded
def export(
    path: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder to write.")],
    format: Annotated[str, typer.Option(help="npy, parquet or safetensors.")] = "npy",
) -> int:
    """Write the features of every video to files; the path of each is printed.

    npy: NAME.npy holds a video's features, frames first, and NAME.pts.npy the frames' times in
    seconds.
    """
    from flamvid.store.transfer import export

    if output.exists() and not output.is_dir():
        raise InputError(f"--output is {output}, which is no folder; give the name of a folder")
    for file in export(path, output, format):
        typer.echo(str(file))
    return 0


@app.command("import")
@guarded
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `export` wrote.")],
    path: Store,
) -> int:
    """Add exported features to a store, which is made if there is none."""
    from flamvid.store.transfer import import_folder

    with working(f"importing {folder}"):
        added, present = import_folder(folder, path)
    typer.echo(f"{one_line(str(path))}: {added} added, {present} were there")
    return 0


@app.command()
@guarded
def rm(
    path: Store,
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Paths or ids.")],
) -> int:
    """Remove videos; `compact` gives their space back to the disk."""
    from flamvid.store.maintain import remove

    for video in remove(path, videos):
        typer.echo(video)
    return 0


@app.command()
@guarded
def compact(path: Store) -> int:
    """Give space that nothing uses back to the disk."""
    from flamvid.store.maintain import compact

    with working(f"compacting {path}"):
        before, after = compact(path)
    typer.echo(f"{one_line(str(path))}: {before:,} bytes became {after:,}")
    return 0


def _list(findings: tuple[Finding, ...], path: Path) -> None:
    for finding in findings:
        report(finding.what, str(path))


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
