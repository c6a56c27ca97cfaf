"""Manifests: a row is a media, perhaps a part of it, and what is said of it.

CSV, TSV, JSONL and Parquet with the columns `video,start,end,caption`, WebVid's CSV, and the
annotation files of `annotations`; pages of MMC4 and OBELICS as JSONL or Parquet; plain texts.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from flamvid.data.annotations import Entry, captions_of_json, captions_of_text
from flamvid.data.corpus import CorpusConfig
from flamvid.data.files import Piece, failing, is_remote, joined, open_file, suffix_of
from flamvid.data.interleaved import is_page, page
from flamvid.data.media import Clip, Pictures
from flamvid.data.parquet import ParquetRows
from flamvid.data.samples import Document, Unread, sound
from flamvid.data.tar import PICTURES, VIDEOS, texts_of
from flamvid.errors import SourceError
from flamvid.video.address import shown

__all__ = ["ManifestShard", "PageShard", "TextShard"]

_MEDIA = ("video", "video_path", "path", "file", "filepath", "file_name", "image", "image_path")
_NAMES = ("videoid", "video_id", "videoID", "youtube_id", "id")
_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".jpg", ".jpeg", ".png", ".webp")
_MOST_FIELD = 1 << 24
_MOST_TEXT = 8 << 30

_PAGE = ("text_list", "image_info", "texts", "images")

Row = dict[str, Any]
Rows = Sequence[Row | SourceError] | ParquetRows


class ManifestShard:
    """The rows of one manifest or annotation file."""

    def __init__(self, address: str, config: CorpusConfig, base: str) -> None:
        self.config, self.base, self.own = config, base, not is_remote(address)
        wanted = config.split
        found = (_with_columns(entry, config.pattern) for entry in _entries(address))
        entries = _some_good(found, address)
        self.entries = [
            e for e in entries if not wanted or isinstance(e, SourceError) or e.split == wanted
        ]
        if wanted and all(isinstance(e, SourceError) for e in self.entries):
            raise SourceError(f"{shown(address)} has no rows of the split {wanted!r}")

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, at: int) -> str:
        """A row's name."""
        entry = self.entries[at]
        return str(at) if isinstance(entry, SourceError) else entry.id

    def document(self, at: int) -> Document:
        """A row; SourceError where it names nothing, or a file outside."""
        entry = _good(self.entries[at])
        if not entry.texts:
            raise SourceError(f"{entry.id} has no caption")
        return Document(entry.id, (self._media(entry),), entry.texts)

    def _media(self, entry: Entry) -> Unread:
        name = sound(entry.video)
        if self.config.pattern:
            try:
                name = sound(self.config.pattern.format_map({**entry.columns, "video": name}))
            except (LookupError, ValueError, AttributeError) as error:
                raise SourceError(f"{entry.id}: no column for {self.config.pattern!r}") from error
        piece = Piece(self._address(name))
        if suffix_of(piece.address)[1:] in PICTURES:
            return Pictures((piece,))
        return Clip(piece, entry.start, entry.end)

    def _address(self, name: str) -> str:
        """Where a file is; what a list from afar names must be in its folder, or on the web."""
        if is_remote(name) and self.own:
            return name
        local = self.own and not is_remote(self.base)
        address = os.path.join(self.base, name) if local else joined(self.base, name)
        if is_remote(name) or suffix_of(name)[1:] in PICTURES | VIDEOS:
            return address
        if not is_remote(address) and not os.path.isfile(address):
            # Names are often the ids of videos, which were obtained in whatever format there was.
            for suffix in _SUFFIXES:
                if os.path.isfile(address + suffix):
                    return address + suffix
        return address if suffix_of(name) or self.config.pattern else f"{address}.mp4"


class PageShard:
    """The pages of one JSONL or Parquet file, with the images in a folder."""

    def __init__(self, address: str, base: str) -> None:
        self.base, self.pages = base, _some_rows(address, _PAGE)

    def __len__(self) -> int:
        return len(self.pages)

    def name(self, at: int) -> str:
        """A page's line."""
        return str(at)

    def document(self, at: int) -> Document:
        """A page; SourceError where it has neither layout."""
        row = _good(self.pages[at])
        if not is_page(row):
            raise SourceError(f"row {at} has no text_list, nor texts and images")
        return page(str(at), row, self._find)

    def _find(self, n: int, called: str) -> Unread | None:
        if not called:
            return None
        address = joined(self.base, called)
        if not is_remote(address) and not os.path.isfile(address):
            return None
        return Pictures((Piece(address),))


class TextShard:
    """Texts alone: the rows of JSONL or Parquet with `text`, or one file of plain text."""

    def __init__(self, address: str) -> None:
        plain = _suffix(address) in (".txt", ".md")
        self.rows: Rows = [{"text": _whole(address)}] if plain else _some_rows(address, ("text",))

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, at: int) -> str:
        """A text's line."""
        return str(at)

    def document(self, at: int) -> Document:
        """A text; SourceError for a row without."""
        text = _good(self.rows[at]).get("text")
        if not isinstance(text, str):
            raise SourceError(f"row {at} has the text {text!r:.60}; must be a text")
        return Document(str(at), (text,))


T = TypeVar("T")


def _some_good(rows: Iterable[T | SourceError], address: str) -> Sequence[T | SourceError]:
    """The rows, of which some may be wrong; what is wrong with the first where all of them are."""
    found = list(rows)
    for row in found:
        if not isinstance(row, SourceError):
            return found
    for row in found:
        if isinstance(row, SourceError):
            named = shown(address) in str(row)
            raise row if named else SourceError(f"{shown(address)} has no good row: {row}")
    return found


def _some_rows(address: str, columns: tuple[str, ...]) -> Rows:
    """The rows of a table, of which a Parquet file's are read when they are wanted."""
    if _suffix(address) == ".parquet":
        return ParquetRows(address, columns)
    return _some_good(_rows(address), address)


def _good(row: T | SourceError) -> T:
    if isinstance(row, SourceError):
        raise row
    return row


def _entries(address: str) -> Iterator[Entry | SourceError]:
    suffix = _suffix(address)
    if suffix not in (".json", ".txt"):
        for number, row in enumerate(_rows(address), 1):
            try:
                yield _entry(_good(row), f"{shown(address)}, row {number}")
            except SourceError as error:
                yield error
        return
    data = _whole(address)
    try:
        if suffix == ".json":
            yield from captions_of_json(json.loads(data))
        else:
            yield from captions_of_text(data.splitlines())
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{shown(address)} is no annotation file that is known: {error}"
        ) from error


def _with_columns(entry: Entry | SourceError, pattern: str) -> Entry | SourceError:
    """With the columns that a pattern names: WebVid's others would take 10 GB."""
    if isinstance(entry, SourceError) or not entry.columns:
        return entry
    return replace(entry, columns={k: v for k, v in entry.columns.items() if k in pattern})


def _entry(row: Mapping[str, Any], where: str) -> Entry:
    """A row by the names that its columns have in most corpora."""
    columns = {str(key): str(value) for key, value in row.items() if value is not None}
    texts = texts_of(row) or texts_of({"text": row.get("sentence") or row.get("name")})
    video = next((columns[key] for key in _MEDIA if columns.get(key)), "")
    if not video and columns.get("videoid") and "page_dir" in columns:  # WebVid
        video = f"{columns['page_dir']}/{columns['videoid']}"
    video = video or next((columns[key] for key in _NAMES if columns.get(key)), "")
    if not video:
        raise SourceError(f"{where} names no video; a manifest has a column video, or image")
    return Entry(
        video,
        texts,
        _seconds(columns, ("start", "start_time"), where),
        _seconds(columns, ("end", "end_time"), where),
        columns.get("split", ""),
        columns,
    )


def _seconds(columns: Mapping[str, str], names: tuple[str, ...], where: str) -> float | None:
    text = next((columns[name] for name in names if columns.get(name)), "")
    try:
        return float(text) if text and text.lower() != "nan" else None
    except ValueError:
        raise SourceError(f"{where}: {names[0]} is {text!r}; must be seconds") from None


def _rows(address: str) -> Iterator[Row | SourceError]:
    """The rows of a table, whatever its format, or what is wrong with one of them.

    Raises SourceError for a table that can't be read.
    """
    suffix = _suffix(address)
    if suffix == ".parquet":
        with failing(address), open_file(address) as file:
            from pyarrow import parquet

            for batch in parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
        return
    with failing(address), open_file(address) as file:
        lines = io.TextIOWrapper(_unpacked(file, address), "utf-8-sig", "replace", newline="")
        if suffix == ".jsonl":
            yield from _json_lines(lines, address)
        elif suffix in (".csv", ".tsv"):
            csv.field_size_limit(_MOST_FIELD)
            yield from csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",")
        else:
            raise SourceError(
                f"{shown(address)} ends in {suffix or 'nothing'}; "
                "a manifest is .csv, .tsv, .jsonl, .json, .parquet or .txt"
            )


def _json_lines(lines: io.TextIOWrapper, address: str) -> Iterator[Row | SourceError]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield SourceError(f"{shown(address)}, line {number} is no JSON: {error}")
            continue
        if isinstance(row, dict):
            yield row
        else:
            yield SourceError(f"{shown(address)}, line {number} is no JSON object")


def _whole(address: str) -> str:
    """A file of text, packed or not."""
    with failing(address), open_file(address) as file:
        data = _unpacked(file, address).read(_MOST_TEXT + 1)
    if len(data) > _MOST_TEXT:
        raise SourceError(f"{shown(address)} has more than {_MOST_TEXT} bytes; cut it into files")
    return str(data.decode("utf-8-sig", "replace"))


def _unpacked(file: Any, address: str) -> Any:
    """MMC4 is released as .jsonl.zip, others as .jsonl.gz."""
    if suffix_of(address) == ".gz":
        return gzip.open(file)
    if suffix_of(address) == ".zip":
        packed = zipfile.ZipFile(file)
        return packed.open(packed.infolist()[0])
    return file


def _suffix(address: str) -> str:
    """What a file is, whether it is packed or not."""
    suffix = suffix_of(address)
    if suffix not in (".gz", ".zip"):
        return suffix
    return suffix_of(address[: address.lower().rindex(suffix)])
