"""Hits of a search as a table, JSON, or a contact sheet with a picture of each."""

from __future__ import annotations

import base64
import html
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flamvid.cli.failure import one_line, report
from flamvid.cli.output import check_target, write_whole
from flamvid.errors import FlamvidError

if TYPE_CHECKING:
    from PIL.Image import Image

    from flamvid.index.search import Hit

__all__ = ["cut_command", "write"]

_SIDE = (320, 180)  # pixels of a picture on a sheet
_LABEL = 34


def write(hits: Sequence[Hit], kind: str, target: Path | None, title: str) -> None:
    """Write hits to stdout, or whole to a file."""
    check_target(target, [hit.video for hit in hits])
    if kind == "png":
        data = _png(hits)
    elif kind == "html":
        data = _html(hits, title).encode()
    elif kind == "json":
        data = (json.dumps([_row(hit) for hit in hits], indent=1) + "\n").encode()
    elif kind == "jsonl":
        data = "".join(json.dumps(_row(hit)) + "\n" for hit in hits).encode()
    else:
        data = "".join(_text(place, hit) for place, hit in enumerate(hits, 1)).encode(
            "utf-8", "backslashreplace"
        )
    write_whole(data, target)


def cut_command(hit: Hit) -> str:
    """The ffmpeg command that makes a file of the hit alone; "" of what ffmpeg can't open."""
    if ".tar" in Path(hit.video).name and "#" in hit.video:
        return ""
    name = f"{Path(hit.video).stem}_{hit.start:g}-{hit.end:g}.mp4"
    source = hit.video if "://" in hit.video else f"file:{hit.video}"
    length = hit.end - hit.start
    return shlex.join(
        ["ffmpeg", "-ss", f"{hit.start:g}", "-i", source, "-t", f"{length:g}", f"file:{name}"]
    )


def _row(hit: Hit) -> dict[str, object]:
    return {**asdict(hit), "play": _play(hit), "cut": cut_command(hit)}


def _play(hit: Hit) -> str:
    """The range as players and browsers take it (W3C media fragments)."""
    return f"{hit.video}#t={hit.start:g},{hit.end:g}"


def _text(place: int, hit: Hit) -> str:
    lines = [f"{place:3}  {hit.score:.3f}  {one_line(_play(hit))}"]
    if command := cut_command(hit):
        lines.append(f"            {one_line(command)}")
    return "\n".join(lines) + "\n"


def _picture(hit: Hit) -> Image | None:
    """The frame in the middle of a hit, small; None if it can't be had any more."""
    import numpy as np
    from PIL import Image, ImageOps

    from flamvid import video
    from flamvid.index.content import on_disk
    from flamvid.video.sample import frame_at

    try:
        with on_disk(hit.video) as path, video.open_recorded(path) as opened:
            at = frame_at(opened.pts, np.array([(hit.start + hit.end) / 2]))
            pixels = opened.read(at.tolist()).pixels[0].permute(1, 2, 0).numpy()
        return ImageOps.pad(Image.fromarray(pixels), _SIDE, color=(24, 24, 24))
    except FlamvidError as error:
        report(error, hit.video)
        return None


def _html(hits: Sequence[Hit], title: str) -> str:
    cards = []
    for hit in hits:
        picture, data = _picture(hit), io.BytesIO()
        if picture is not None:
            picture.save(data, "jpeg", quality=82)
        image = base64.b64encode(data.getvalue()).decode()
        name, play, command = (
            html.escape(one_line(t)) for t in (hit.video, _link(hit), cut_command(hit))
        )
        cards.append(
            f'<a href="{play}"><img alt="" src="data:image/jpeg;base64,{image}"></a>'
            f"<p>{hit.score:.3f} &nbsp; {hit.start:g}&ndash;{hit.end:g} s<br>{name}</p>"
            f"<code>{command}</code>"
        )
    style = (
        "body{font:14px sans-serif;background:#181818;color:#ddd}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,320px);gap:16px}"
        "img{width:320px;height:180px;background:#222}p{margin:4px 0}"
        "code{font-size:11px;color:#888;word-break:break-all}"
    )
    title = html.escape(one_line(title))
    body = "".join(f"<section>{card}</section>\n" for card in cards)
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style><h1>{title}</h1>\n<main>\n{body}</main>\n"
    )


def _link(hit: Hit) -> str:
    if "://" in hit.video:
        return _play(hit)
    return f"{Path(hit.video).absolute().as_uri()}#t={hit.start:g},{hit.end:g}"


def _png(hits: Sequence[Hit]) -> bytes:
    from PIL import Image, ImageDraw

    columns = min(4, max(1, len(hits)))
    rows = -(-len(hits) // columns)
    width, height = _SIDE[0], _SIDE[1] + _LABEL
    sheet = Image.new("RGB", (columns * width, max(1, rows) * height), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for place, hit in enumerate(hits):
        x, y = place % columns * width, place // columns * height
        if (picture := _picture(hit)) is not None:
            sheet.paste(picture, (x, y))
        label = (
            f"{hit.score:.3f}  {hit.start:g}-{hit.end:g} s\n{one_line(Path(hit.video).name)[-48:]}"
        )
        draw.text((x + 4, y + _SIDE[1] + 4), label, fill=(221, 221, 221))
    data = io.BytesIO()
    sheet.save(data, "png")
    return data.getvalue()
