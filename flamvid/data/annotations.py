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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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


def captions_of_json(table: Any) -> Iterator[Entry]:
    """The entries of an annotation file; LookupError, TypeError or ValueError for none of these."""
    if isinstance(table, list):
        yield from (_vatex(row) for row in table)
    elif "sentences" in table and "videos" in table:
        yield from _msrvtt(table)
    elif "database" in table:
        yield from _youcook2(table["database"])
    elif "annotations" in table and "images" in table:
        yield from _coco(table)
    elif "images" in table:
        yield from (_karpathy(row) for row in table["images"])
    elif table and all("timestamps" in row for row in table.values()):
        yield from _activitynet(table)
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


def _msrvtt(table: Mapping[str, Any]) -> Iterator[Entry]:
    # Clips are files of their own: `start time` and `end time` are of the video they were cut from.
    said: dict[str, list[str]] = {}
    for sentence in table["sentences"]:
        said.setdefault(str(sentence["video_id"]), []).append(str(sentence["caption"]))
    for row in table["videos"]:
        name = str(row["video_id"])
        yield Entry(name, tuple(said.get(name, ())), split=str(row.get("split", "")))


def _vatex(row: Mapping[str, Any]) -> Entry:
    # The test split's captions are withheld: its rows have no enCap.
    return Entry(str(row["videoID"]), tuple(map(str, row.get("enCap", ()))))


def _activitynet(table: Mapping[str, Any]) -> Iterator[Entry]:
    for name, row in table.items():
        for (start, end), text in zip(row["timestamps"], row["sentences"], strict=True):
            first, last = sorted((max(float(start), 0.0), float(end)))  # a few are turned around
            yield Entry(name, (str(text).strip(),), first, last)


def _youcook2(database: Mapping[str, Any]) -> Iterator[Entry]:
    for name, row in database.items():
        columns = {"recipe_type": str(row.get("recipe_type", ""))}
        for part in row.get("annotations", ()):
            start, end = map(float, part["segment"])
            subset = str(row.get("subset", ""))
            yield Entry(name, (str(part["sentence"]),), start, end, subset, columns)


def _coco(table: Mapping[str, Any]) -> Iterator[Entry]:
    said: dict[Any, list[str]] = {}
    for row in table["annotations"]:
        said.setdefault(row["image_id"], []).append(str(row["caption"]).strip())
    for image in table["images"]:
        yield Entry(str(image["file_name"]), tuple(said.get(image["id"], ())))


def _karpathy(row: Mapping[str, Any]) -> Entry:
    columns = {"filepath": str(row.get("filepath", ""))}
    texts = tuple(str(sentence["raw"]).strip() for sentence in row["sentences"])
    return Entry(str(row["filename"]), texts, split=str(row.get("split", "")), columns=columns)
