"""`flamvid ask`: an answer to a question about a source, or about each of a folder."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import typer

from flamvid.cli import options as opt
from flamvid.cli.caption import deliver, load
from flamvid.cli.failure import FAILED, guarded, named, say
from flamvid.cli.output import Format, encoder, open_output
from flamvid.cli.progress import progress
from flamvid.cli.sources import existing, expand
from flamvid.errors import InputError
from flamvid.text.shots import read_shots

__all__ = ["ask"]


class AnswerFormat(StrEnum):
    """How an answer is written."""

    text = "text"
    json = "json"


@guarded
def ask(
    source: Annotated[
        str,
        typer.Argument(
            help="A video, picture or folder of frames; a folder of videos or a quoted glob."
        ),
    ],
    question: Annotated[str, typer.Argument(help="What you want to know, in quotes.")],
    model: opt.Model = "flamvid-base",
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    start: opt.Start = None,
    end: opt.End = None,
    beams: opt.Beams = 3,
    max_tokens: opt.MaxTokens = 20,
    min_tokens: opt.MinTokens = 1,
    length_penalty: opt.LengthPenalty = 0.0,
    no_repeat_ngram: opt.NoRepeatNgram = 0,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = 0,
    format: Annotated[
        AnswerFormat, typer.Option("--format", "-f", help="text, or one line of json.")
    ] = AnswerFormat.text,
    shots: opt.Shots = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    device_map: opt.DeviceMap = None,
    draft: opt.Draft = False,
    decode_timeout: opt.DecodeTimeout = None,
    verbose: opt.Verbose = False,
) -> int:
    """Answer a question about a video or a picture."""
    text = opt.TextOptions(
        frames=frames,
        fps=fps,
        start=start,
        end=end,
        beams=beams,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        length_penalty=length_penalty,
        no_repeat_ngram=no_repeat_ngram,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        decode_timeout=decode_timeout,
    )
    if not question.strip():
        raise InputError("the question is empty; give a sentence, in quotes")
    where = opt.ModelOptions(
        model=model, device=device, dtype=dtype, device_map=device_map, draft=draft
    )
    opt.check_draft(where, text)
    wanted = expand([source])
    if verbose:
        extra = [f"--format={format}", *([f"--shots={shots}"] if shots else [])]
        say(opt.command_line("ask", [source, question], where, text, extra=extra))
    found = existing(wanted)
    if not found:
        return FAILED
    examples = read_shots(shots, questions=True) if shots else []

    kind = Format.text if format is AnswerFormat.text else Format.jsonl
    encoding, failed = encoder(kind, many=len(wanted) > 1), len(wanted) - len(found)
    with open_output(encoding, None) as out, progress(len(found)) as bar:
        captioner = load(where, bar, verbose)
        keywords: dict[str, Any] = text.keywords("every", "window", "prompt", "returns")
        if examples:
            looked: dict[str, Any] = {
                "frames": frames,
                "fps": fps,
                "decode_timeout": decode_timeout,
            }
            keywords["shots"] = captioner.examples(examples, **looked)
        for one in found:
            bar.show(named(one))
            # An iterator: what goes wrong is met, and told, as it is delivered.
            answers = map(partial(captioner.ask, question=question, **keywords), [one])
            failed += not deliver(answers, one, out, bar, verbose)
            bar.advance()
    return FAILED if failed else 0
