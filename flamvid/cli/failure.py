"""What the user sees when something fails: one line on stderr, and an exit code.

0 all is well, 1 some inputs failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

import typer

from flamvid.errors import ConfigError, FlamvidError, InputError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "ClosedPipe",
    "OutputError",
    "guarded",
    "log_to_stderr",
    "named",
    "one_line",
    "report",
    "say",
]

FAILED, USAGE, INTERRUPTED = 1, 2, 130

P = ParamSpec("P")


class OutputError(FlamvidError):
    """What was made can't be written."""


class ClosedPipe(OutputError):  # noqa: N818 - not a failure: the reader has what it wanted
    """The reader of stdout went away, as `| head` does."""


def one_line(text: str) -> str:
    """`text` on one line and without control characters, which could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def named(source: str) -> str:
    """A source as it may be shown: on one line, and without the password of its address."""
    from flamvid.video.address import shown

    return one_line(shown(source))


def say(text: str) -> None:
    """A line on stderr; a stderr that is gone is no reason to stop."""
    line = text.encode("utf-8", "backslashreplace").decode("utf-8")
    with contextlib.suppress(OSError, ValueError):  # UnicodeEncodeError is a ValueError
        print(line, file=sys.stderr, flush=True)


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"flamvid: {one_line(record.getMessage())}")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Say what the library notes on its way: which decoder reads a file and why, say."""
    log = logging.getLogger("flamvid")
    log.setLevel(level)
    if not any(isinstance(handler, _Say) for handler in log.handlers):
        log.addHandler(_Say())


def _log_no_more() -> None:
    log = logging.getLogger("flamvid")
    for handler in [h for h in log.handlers if isinstance(h, _Say)]:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def report(error: BaseException | str, source: str | None = None) -> None:
    """One line `flamvid: <error>` that names the source, whether the error did or not."""
    text = one_line(str(error)) or type(error).__name__
    if source is not None and (name := named(source)) not in text:
        text = f"{name}: {text}"
    say(f"flamvid: {text}")


def guarded(command: Callable[P, int]) -> Callable[P, None]:
    """A command that returns its exit code, and whose errors are one line each."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except (ClosedPipe, BrokenPipeError):
            _abandon_stdout()
            code = 0
        except (InputError, ConfigError) as error:
            report(error)
            code = USAGE
        except OutputError as error:
            _abandon_stdout()
            report(error)
            code = FAILED
        except FlamvidError as error:
            report(error)
            code = FAILED
        except PermissionError as error:  # pathlib raises it for what lies in a closed folder
            report(f"{error.filename}: {error.strerror}; check who may read or write there")
            code = FAILED
        except KeyboardInterrupt:
            report("interrupted")
            code = INTERRUPTED
        finally:
            _log_no_more()
        raise typer.Exit(code)

    # typer reads the hints of the function that it is given
    run.__annotations__ = {**command.__annotations__, "return": "None"}
    return run


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, or it would complain again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stdout = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout)
        os.close(nowhere)
