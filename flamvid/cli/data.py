"""`flamvid data`: what a recipe trains on, whether it can be read, and how to pack it."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flamvid.cli.failure import FAILED, OutputError, guarded, one_line, report, say
from flamvid.cli.progress import quiet_libraries
from flamvid.errors import FlamvidError, InputError

if TYPE_CHECKING:
    from flamvid.data.corpus import CorpusConfig

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="List, show, verify and pack training data.")

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE.toml", help="A recipe, or any TOML with [[corpus]].")
]
Root = Annotated[Path | None, typer.Option("--data", help="Folder of the data (the recipe's own).")]
Corpus = Annotated[str | None, typer.Option("--corpus", help="Only the corpus of this name.")]


@app.command("list")
@guarded
def list_(
    recipe: Recipe,
    data: Root = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """List the corpora of a recipe: files, samples, and their part in an update."""
    corpora, root = _read(recipe, data, None)
    from flamvid.data.sources import open_corpus

    rows = []
    for split, configs in corpora.items():
        for config in configs:
            samples = open_corpus(config, root)
            about = {"split": split, "corpus": config.name, "kind": config.kind}
            sizes = {"files": len(samples.files), "samples": samples.total}
            rows.append(about | sizes | {"batch": config.batch, "weight": config.weight})
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    return 0


@app.command()
@guarded
def show(
    recipe: Recipe,
    data: Root = None,
    corpus: Corpus = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="So many of each.")] = 3,
) -> int:
    """Print the first samples of each corpus as JSON lines; media as the shape of their frames.

    Samples that can't be read are named.
    """
    corpora, root = _read(recipe, data, corpus)
    from flamvid.data.sources import open_corpus

    failed = False
    for split, configs in corpora.items():
        for config in configs:
            samples = open_corpus(config, root)
            places = ((s, at) for s, n in enumerate(samples.counts) for at in range(n))
            for shard, at in islice(places, count):
                about = {"split": split, "corpus": config.name, "sample": samples.name(shard, at)}
                try:
                    found = about | _shown(samples.document(shard, at), config)
                except FlamvidError as error:
                    report(one_line(f"{split} {config.name}: {about['sample']}: {error}"))
                    failed = True
                    continue
                typer.echo(json.dumps(found, ensure_ascii=False))
    return FAILED if failed else 0


@app.command()
@guarded
def verify(recipe: Recipe, data: Root = None, corpus: Corpus = None) -> int:
    """Read every sample; name what is damaged, what is there twice, and what splits share.

    One line on stdout for each problem; exit code 1 where there is one.
    """
    corpora, root = _read(recipe, data, corpus)
    from flamvid.data.verify import verify as problems_of

    def count(split: str, config: CorpusConfig, good: int, missing: int) -> None:
        say(f"flamvid: {split} {config.name}: {good} samples are good{_gone(missing)}")

    found = 0
    for problem in problems_of(corpora, root, count):
        typer.echo(one_line(str(problem)))
        found += 1
    if found:
        say(f"flamvid: {found} problem{'s' if found > 1 else ''}")
    return FAILED if found else 0


@app.command()
@guarded
def pack(
    recipe: Recipe,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards.")],
    data: Root = None,
    corpus: Corpus = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 1000,
    videos: Annotated[
        bool, typer.Option("--videos", help="Copy video files, rather than some frames of them.")
    ] = False,
) -> int:
    """Write the corpora of a recipe as tar shards, FOLDER/SPLIT/NAME-00000.tar and so on.

    The paths are printed. Samples that can't be read are named and left out. Shards that are there
    already are not written over.
    """
    corpora, root = _read(recipe, data, corpus)
    from flamvid.data.pack import pack as shards_of
    from flamvid.data.pack import unpacked

    for split, configs in corpora.items():
        for config in configs:
            unpacked(config, output / split)
    failed = False
    for split, configs in corpora.items():
        for config in configs:
            label = f"{split} {config.name}"

            def count(packed: int, missing: int, label: str = label) -> None:
                say(f"flamvid: {label}: {packed} samples are packed{_gone(missing)}")

            try:
                made_of = shards_of(config, root, output / split, per_shard, videos, count)
                for made in made_of:
                    if isinstance(made, Path):
                        typer.echo(str(made))
                    else:
                        report(one_line(f"{label}: {made.id}: {made.reason}"))
                        failed = True
            except OSError as error:
                said = error.strerror or error
                raise OutputError(f"can't write to {output} ({said})") from error
    return FAILED if failed else 0


def _read(
    recipe: Path, data: Path | None, corpus: str | None
) -> tuple[dict[str, tuple[CorpusConfig, ...]], Path]:
    """Corpora by split, and the folder that their sources are relative to."""
    if not recipe.is_file():
        raise InputError(f"{recipe}: no such file; give the path of a recipe's .toml")
    if data is not None and not data.is_dir():
        raise InputError(f"--data is {data}, which is no folder; give the folder of the data")
    quiet_libraries()
    from flamvid.data.corpus import read_corpora

    corpora = read_corpora(recipe)
    if corpus is not None:
        names = {config.name for configs in corpora.values() for config in configs}
        if corpus not in names:
            raise InputError(f"--corpus is {corpus!r}; {recipe} has {', '.join(sorted(names))}")
        corpora = {s: tuple(c for c in cs if c.name == corpus) for s, cs in corpora.items()}
    return corpora, data or recipe.parent


def _gone(missing: int) -> str:
    return f"; {missing} images of pages are missing" if missing else ""


def _shown(document: Any, config: CorpusConfig) -> dict[str, Any]:
    from flamvid.data.samples import Look, Media

    parts: list[Any] = []
    for part in document.parts:
        if not isinstance(part, str):
            media = part if isinstance(part, Media) else part(Look(config.frames, config.fps))
            shapes = {n: getattr(media, n) for n in ("frames", "features")}
            part = {name: list(x.shape) for name, x in shapes.items() if x is not None}
            part["pts"] = [round(float(t), 3) for t in media.pts]
        parts.append(part)
    return {"parts": parts} | ({"captions": list(document.texts)} if document.texts else {})
