"""Captions as their corpora were released: JSON and text files, told apart by what is in them.

| corpus | file | what tells it |
|---|---|---|
| MSR-VTT | train_val_videodatainfo.json | `videos` and `sentences` |
| VATEX | vatex_training_v1.0.json | a list with `videoID` and `enCap` |
| ActivityNet-Captions | train.json | videos by name, with `timestamps` and `sentences` |
| YouCook2 | youcookii_annotations_trainval.json | `database` |
| COCO | captions_train2017.json | `images` and `annotations` |
| Karpathy's splits of COCO, Flickr8k | dataset_flickr8k.json | `images` with `sentences` |
| MSVD | AllVideoDescriptions.txt | lines `video_start_end caption` |
| Flickr8k | Flickr8k.token.txt | lines `image.jpg#n<tab>caption` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flamvid.errors import SourceError

_WRONG = (LookupError, TypeError, ValueError, AttributeError)

__all__ = ["Entry", "captions_of_json", "captions_of_text"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A media, or a part of it in seconds, with what is said of it. `columns` fill a pattern."""

    video: str
    texts: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    split: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its name; parts of one video have different ones."""
        return (
            self.video if self.start is None else f"{self.video}@{self.start:g}-{self.end or 0:g}"
        )


def captions_of_json(table: Any) -> Iterator[Entry | SourceError]:
    """The entries of an annotation file, or what is wrong with one of them.

    Raises LookupError, TypeError or ValueError for a file that is none of these.
    """
    if isinstance(table, list):
        yield from _each(enumerate(table), _vatex)
    elif "sentences" in table and "videos" in table:
        yield from _msrvtt(table)
    elif "database" in table:
        yield from _each(table["database"].items(), _youcook2)
    elif "annotations" in table and "images" in table:
        yield from _coco(table)
    elif "images" in table:
        yield from _each(enumerate(table["images"]), _karpathy)
    elif any("timestamps" in row for row in table.values() if isinstance(row, dict)):
        yield from _each(table.items(), _activitynet)
    else:
        raise ValueError(f"it has the keys {', '.join(map(str, list(table)[:5]))}")


def captions_of_text(lines: list[str]) -> Iterator[Entry]:
    """The entries of MSVD's or Flickr8k's text file; ValueError for neither."""
    said: dict[str, list[str]] = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, text = line.strip().partition("\t" if "\t" in line else " ")
        name = name.partition("#")[0]
        if not text.strip() or not re.search(r"_\d+_\d+$|\.jpe?g$", name):
            raise ValueError(f"the line {line[:60]!r}")
        said.setdefault(name, []).append(text.strip())
    for name, texts in said.items():
        yield Entry(name, tuple(texts))


def _each(
    rows: Iterable[tuple[Any, Any]], entries: Callable[[Any, Any], Iterator[Entry]]
) -> Iterator[Entry | SourceError]:
    """The entries of each row, by its name and what it holds; or what is wrong with the row."""
    for name, row in rows:
        try:
            yield from list(entries(name, row))
        except _WRONG as error:
            yield SourceError(f"the row {name} can't be read ({error!r})")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value.strip()


def _said(rows: Iterable[Any], key: str, wrong: list[SourceError]) -> dict[Any, list[str]]:
    """Captions by what they are of; those that can't be read are `wrong`."""
    said: dict[Any, list[str]] = {}
    for at, row in enumerate(rows):
        try:
            said.setdefault(row[key], []).append(_text(row["caption"]))
        except _WRONG as error:
            wrong.append(SourceError(f"the caption {at} can't be read ({error!r})"))
    return said


def _msrvtt(table: Mapping[str, Any]) -> Iterator[Entry | SourceError]:
    # Clips are files of their own: `start time` and `end time` are of the video they were cut from.
    wrong: list[SourceError] = []
    said = _said(table["sentences"], "video_id", wrong)

    def entries(_: int, row: Any) -> Iterator[Entry]:
        name = row["video_id"]
        yield Entry(str(name), tuple(said.get(name, ())), split=str(row.get("split", "")))

    yield from _each(enumerate(table["videos"]), entries)
    yield from wrong


def _vatex(_: int, row: Any) -> Iterator[Entry]:
    # The test split's captions are withheld: its rows have no enCap.
    yield Entry(_text(row["videoID"]), tuple(map(_text, _list(row.get("enCap", [])))))


def _activitynet(name: str, row: Any) -> Iterator[Entry]:
    for (start, end), text in zip(row["timestamps"], row["sentences"], strict=True):
        first, last = sorted((max(float(start), 0.0), float(end)))  # a few are turned around
        yield Entry(name, (_text(text),), first, last)


def _youcook2(name: str, row: Any) -> Iterator[Entry]:
    columns = {"recipe_type": str(row.get("recipe_type", ""))}
    for part in row.get("annotations", ()):
        start, end = map(float, part["segment"])
        subset = str(row.get("subset", ""))
        yield Entry(name, (_text(part["sentence"]),), start, end, subset, columns)


def _coco(table: Mapping[str, Any]) -> Iterator[Entry | SourceError]:
    wrong: list[SourceError] = []
    said = _said(table["annotations"], "image_id", wrong)

    def entries(_: int, row: Any) -> Iterator[Entry]:
        yield Entry(_text(row["file_name"]), tuple(said.get(row["id"], ())))

    yield from _each(enumerate(table["images"]), entries)
    yield from wrong


def _karpathy(_: int, row: Any) -> Iterator[Entry]:
    columns = {"filepath": str(row.get("filepath", ""))}
    texts = tuple(_text(sentence["raw"]) for sentence in row["sentences"])
    split = str(row.get("split", ""))
    yield Entry(_text(row["filename"]), texts, split=split, columns=columns)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.60} is no list")
    return value
