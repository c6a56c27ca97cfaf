"""A training run as it is seen: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flamvid.cli.duration import duration
from flamvid.cli.failure import say

if TYPE_CHECKING:
    from rich.progress import Progress

    from flamvid.train.trainer import Report

__all__ = ["Watch", "line", "watching"]


class Watch:
    """Shows reports of a run."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None) if bar else None

    def say(self, text: str) -> None:
        """A line that stays, above the bar where there is one."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def __call__(self, report: Report) -> None:
        """How the run stands."""
        if self._bar is None or self._task is None:
            left = duration(report.left)
            say(f"update {report.step}/{report.steps} {line(report)}, {left} left")
        else:
            from rich.markup import escape

            self._bar.update(
                self._task,
                total=report.steps,
                completed=report.step,
                description=escape(line(report)),
            )


def line(report: Report) -> str:
    """The numbers of a report on one line; of the gates, how far the widest is open."""
    losses = " ".join(f"{name} {loss:.4f}" for name, loss in report.losses.items())
    widest = max((abs(gate) for layer in report.gates for gate in layer), default=0.0)
    return (
        f"loss {losses} norm {report.norm:.2f} rate {report.rate:.2e} gate {widest:.3f} "
        f"{report.samples_per_second:.1f} samples/s waited {report.waited:.1%} "
        f"encoding {report.encoded:.1%}"
    )


@contextmanager
def watching() -> Iterator[Watch]:
    """A watch for as long as a run lasts."""
    if not sys.stderr.isatty():
        yield Watch(None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        redirect_stdout=False,  # or data would end up on stderr
    )
    with bar:
        yield Watch(bar)
