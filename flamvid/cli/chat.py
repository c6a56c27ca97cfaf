"""`flamvid chat`: a conversation about pictures and videos, line by line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamvid.cli import options as opt
from flamvid.cli.caption import load
from flamvid.cli.failure import guarded, report, say
from flamvid.cli.progress import progress
from flamvid.cli.stdin import check_stdin
from flamvid.errors import FlamvidError, InputError

if TYPE_CHECKING:
    from flamvid.api import Chat

__all__ = ["chat"]

_HELP = """/image PATH                 show a picture
/video PATH [START END]     show a video, or a part of it in seconds
/forget                     begin anew
/help                       this
/quit                       or the end of the input"""


@guarded
def chat(
    model: opt.Model = "flamvid-base",
    beams: Annotated[int, typer.Option(help="Beams of the search; 1 writes as it thinks.")] = 1,
    max_tokens: opt.MaxTokens = 40,
    no_repeat_ngram: opt.NoRepeatNgram = 3,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = 0,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    draft: opt.Draft = False,
    verbose: opt.Verbose = False,
) -> int:
    """Talk about pictures and videos: /image PATH, /video PATH [START END], or a question."""
    text = opt.TextOptions(
        beams=beams,
        max_tokens=max_tokens,
        min_tokens=1,  # silence is no answer
        no_repeat_ngram=no_repeat_ngram,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    where = opt.ModelOptions(
        model=model, device=device, dtype=dtype, device_map=device_map, draft=draft
    )
    opt.check_draft(where, text)
    check_stdin("flamvid chat")
    if reconfigure := getattr(sys.stdin, "reconfigure", None):
        reconfigure(errors="replace")  # a byte that is no text must not end the conversation
    with progress(1) as bar:
        captioner = load(where, bar, verbose)
    talk = captioner.chat(**text.search())
    if sys.stdin.isatty():
        say(_HELP)
    told = False
    while True:
        if sys.stdin.isatty():
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return 0
        try:
            _turn(talk, line.strip(), streams=beams == 1)
        except FlamvidError as error:  # a typing error must not end the conversation
            report(error)
        if talk.left_out and not told:
            say("flamvid: the oldest turns are left out: the language model has no more room")
            told = True


def _turn(talk: Chat, line: str, streams: bool) -> None:
    """Do what one line says."""
    if not line:
        return
    if not line.startswith("/"):
        tell = _write if streams else None
        answer = talk.say(line, tell)
        _write("\n" if streams else f"{answer}\n")
        return
    verb, _, rest = line.partition(" ")
    words = _words(rest.strip(), line)
    if verb == "/help" and not words:
        say(_HELP)
    elif verb == "/forget" and not words:
        talk.forget()
    elif verb == "/image" and len(words) == 1:
        talk.show(words[0])
    elif verb == "/video" and len(words) in (1, 3):
        start, end = (_seconds(word) for word in words[1:]) if words[1:] else (None, None)
        talk.show(words[0], start, end)
    else:
        raise InputError(f"{line!r} is no command; /help lists them")


def _words(text: str, line: str) -> list[str]:
    """What stands behind a command. The path of a file that is there needs no quotes."""
    parts = text.rsplit(maxsplit=2)
    if text and Path(text).exists():
        return [text]
    if len(parts) == 3 and Path(parts[0]).exists():
        return parts
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(
            f"{line!r} can't be split into words ({error}); mind the quotes"
        ) from error


def _seconds(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{word!r} is no time; give seconds, as in /video a.mp4 2 5.5") from error


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
