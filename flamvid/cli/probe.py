"""`flamvid probe`: what a file is, which decoder reads it and why, and whether that is right."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from flamvid.cli import options as opt
from flamvid.cli.failure import FAILED, guarded, named, one_line, report
from flamvid.errors import InputError

__all__ = ["probe"]


@guarded
def probe(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A video, picture, folder or web address.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare its frames with ffmpeg's, read forward.")
    ] = False,
    frames: Annotated[int, typer.Option(min=1, help="How many frames --verify compares.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    decode_timeout: opt.DecodeTimeout = None,
) -> int:
    """Say what a file is, and how it is read.

    With --verify the exit code is 1 if the decoder gives other frames than ffmpeg does.
    """
    from flamvid import video

    with video.open(source, timeout=decode_timeout) as opened:
        facts = asdict(opened.info)
        facts["duration"] = float(opened.pts[-1] + opened.durations[-1])
        facts["decoder"] = opened.decoder
        facts["reason"] = opened.reason
    differences: list[dict[str, Any]] = []
    if verify and facts["decoder"] != "pillow":
        from flamvid.video.address import local_path
        from flamvid.video.verify import verify as audit

        if not local_path(source).is_file():
            raise InputError(f"--verify reads files only; record {named(source)} to one first")
        outcome = audit(local_path(source), frames, decode_timeout)
        differences = [asdict(difference) for difference in outcome.differences]
        facts["verified"] = {"frames": outcome.checked, "differences": differences}
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        _print(facts)
    for difference in differences:
        where = "" if difference["frame"] < 0 else f"frame {difference['frame']} "
        where += f"at {difference['pts']:.3f} s: " if where else ""
        report(f"{where}{difference['what']}", source)
    return FAILED if differences else 0


def _print(facts: dict[str, Any]) -> None:
    names = {
        "container": facts["container"],
        "codec": f"{facts['codec']} {facts['pixel_format']}".strip(),
        "size": f"{facts['width']}x{facts['height']}",
        "rotation": f"{facts['rotation']} degrees" if facts["rotation"] else "",
        "pixel aspect": f"{facts['pixel_aspect']:.4g}" if facts["pixel_aspect"] != 1 else "",
        "interlaced": "yes" if facts["interlaced"] else "",
        "HDR": facts["transfer"],
        "duration": f"{facts['duration']:.3f} s",
        "frames": f"{facts['frames']}, {facts['fps']:.4g} per second on average",
        "decoder": f"{facts['decoder']}: {facts['reason']}",
    }
    if "verified" in facts:
        wrong = len(facts["verified"]["differences"])
        count = facts["verified"]["frames"]
        names["verified"] = f"{count} frames, " + (f"{wrong} differences" if wrong else "all right")
    for name, value in names.items():
        if value:
            typer.echo(f"{name:<12}  {one_line(value)}")
