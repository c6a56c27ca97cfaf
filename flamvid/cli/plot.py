"""`flamvid plot`: a training run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flamvid.cli.failure import guarded
from flamvid.cli.progress import quiet_libraries
from flamvid.errors import InputError

__all__ = ["plot"]


@guarded
def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG (RUN/plot.png).")
    ] = None,
) -> int:
    """Draw a run's losses by corpus, and how far the gates of each layer are open."""
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the folder of a run, as runs/my-recipe")
    quiet_libraries()
    from flamvid.train.plot import plot_run

    typer.echo(str(plot_run(run, output or run / "plot.png")))
    return 0
