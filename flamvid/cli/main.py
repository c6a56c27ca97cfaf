"""The command `flamvid`. It parses, calls the API and prints; torch waits for a model to load."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from flamvid import __version__
from flamvid.cli import data, models, store
from flamvid.cli.ask import ask
from flamvid.cli.caption import caption
from flamvid.cli.chat import chat
from flamvid.cli.doctor import doctor
from flamvid.cli.failure import INTERRUPTED, report
from flamvid.cli.frames import frames
from flamvid.cli.index import index
from flamvid.cli.live import live
from flamvid.cli.plot import plot
from flamvid.cli.probe import probe
from flamvid.cli.process import prepare
from flamvid.cli.search import search
from flamvid.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="flamvid",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help needs no rich, and is there in a tenth of a second
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(caption)
app.command()(ask)
app.command()(chat)
app.command()(live)
app.command()(index)
app.command()(search)
app.command()(probe)
app.command()(frames)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(store.app, name="store")
app.command()(train)
app.command()(plot)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flamvid {__version__}")
        raise typer.Exit


@app.callback()
def flamvid(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Understand video, live or recorded, with the Flamingo design.

    flamvid caption video.mp4                  a sentence about it

    flamvid caption --every 5 -o out.vtt v.mp4   subtitles

    flamvid ask video.mp4 "Who sings?"         an answer
    """


def main() -> None:
    """The entry point; SIGTERM is treated as Ctrl-C, so what is done is kept."""
    signal.signal(signal.SIGTERM, _terminate)
    prepare()
    try:
        app(prog_name="flamvid")
    except KeyboardInterrupt:  # before a command could catch it
        report("interrupted")
        sys.exit(INTERRUPTED)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
