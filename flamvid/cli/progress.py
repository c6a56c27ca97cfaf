"""A line of progress on a terminal's stderr; elsewhere nothing. Data never passes through it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flamvid.cli.failure import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

__all__ = ["Progress", "progress", "quiet_libraries", "working"]


def quiet_libraries() -> None:
    """Keep libraries' bars and advice off stderr. Before they are imported: they look once."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells of every retry
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # python -W or PYTHONWARNINGS asks to see them
        warnings.simplefilter("ignore")


class Progress:
    """What is being done, and how many are done; silent when there is no terminal."""

    def __init__(self, bar: RichProgress | None, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total) if bar else None

    def show(self, what: str) -> None:
        """Name what is being done now."""
        if self._bar and self._task is not None:
            from rich.markup import escape

            self._bar.update(self._task, description=escape(what))

    def advance(self) -> None:
        """One more is done."""
        if self._bar and self._task is not None:
            self._bar.advance(self._task)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the line away while something else is written to the terminal."""
        if not self._bar:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress(total: int) -> Iterator[Progress]:
    """Progress over `total` sources; the line is gone at the end."""
    if not sys.stderr.isatty():
        yield Progress(None, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn

    with _bar(BarColumn(), MofNCompleteColumn()) as bar:
        yield Progress(bar, total)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Name what is being done, where it can't be told how much of it is."""
    if not sys.stderr.isatty():
        yield
        return
    with _bar() as bar:
        Progress(bar, 1).show(one_line(what))
        yield


def _bar(*columns: ProgressColumn) -> RichProgress:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *columns,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # or data would end up on stderr
    )
