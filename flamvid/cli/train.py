"""`flamvid train`: a run from a recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flamvid.cli.failure import INTERRUPTED, guarded, report, say
from flamvid.cli.progress import quiet_libraries
from flamvid.errors import InputError

__all__ = ["train"]


@guarded
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, and on.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the shards (as the recipe says).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (runs/<name of the recipe>).")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, rather than at the last checkpoint.")
    ] = False,
) -> int:
    """Train a model as a recipe says; the path of the adapter is printed at the end.

    A run that was stopped goes on from its last checkpoint when the command is given again.
    """
    if not recipe.is_file():
        raise InputError(f"{recipe}: no such file; give the path of a recipe's .toml")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out is {out}, which is no folder; give the name of a folder")
    if data is not None and not data.is_dir():
        raise InputError(f"--data is {data}, which is no folder; give the folder of the shards")
    out = out or Path("runs") / recipe.stem
    words = ["flamvid", "train", str(recipe.resolve()), f"--out={out.resolve()}"]
    words += [f"--data={data.resolve()}"] if data else []
    command = shlex.join([*words, *(["--fresh"] if fresh else [])])
    say(f"flamvid: {command}")

    quiet_libraries()
    from flamvid.train import contrastive_run, loop

    contrastive = contrastive_run.is_contrastive(recipe)
    run = contrastive_run.run_contrastive if contrastive else loop.run
    try:
        adapter = run(recipe, data, out, resume=not fresh, log=say)
    except KeyboardInterrupt:
        report(f"interrupted; {shlex.join(words)} goes on from the last checkpoint")
        return INTERRUPTED
    typer.echo(str(adapter))
    return 0
