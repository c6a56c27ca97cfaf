"""Pages: texts and images in the order in which a reader meets them.

Layouts are those of MMC4 (Zhu et al. 2023), where each image is matched to a sentence, and of
OBELICS (Laurençon et al. 2023), where texts and images fill one list between them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from flamvid.data.files import Held
from flamvid.data.media import Pictures
from flamvid.data.samples import Document, Part, Unread
from flamvid.errors import SourceError

__all__ = ["is_page", "page"]

Find = Callable[[int, str], Unread | None]
"""The image that is the n-th of its page, and so called; None where it was not obtained."""


def is_page(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a page in one of the layouts."""
    return "text_list" in table or ("texts" in table and "images" in table)


def page(id: str, table: Mapping[str, Any], find: Find) -> Document:
    """A page as a document; images that are not there are left out, but not all of them."""
    missing = 0

    def found(n: int, called: str) -> Unread | None:
        nonlocal missing
        image = find(n, called)
        missing += image is None
        return image

    try:
        parts = _mmc4(table, found) if "text_list" in table else _obelics(table, found)
    except (LookupError, TypeError, ValueError, binascii.Error) as error:
        raise SourceError(f"{id} is no page of MMC4 or OBELICS ({error!r})") from error
    if missing and all(isinstance(part, str) for part in parts):
        raise SourceError(f"{id} has none of its {missing} images")
    return Document(id, tuple(parts), missing=missing)


def _mmc4(table: Mapping[str, Any], find: Find) -> list[Part]:
    """Each image stands in front of the sentence that it is matched to."""
    sentences = [(text or "").strip() for text in _list(table["text_list"])]
    before: dict[int, list[Part]] = {}
    for n, image in enumerate(table.get("image_info", ())):
        at = int(image["matched_text_index"])
        if not 0 <= at < len(sentences):
            raise ValueError(f"matched_text_index {at} of {len(sentences)} sentences")
        found = _encoded(image.get("image_base64")) or find(n, str(image.get("image_name") or ""))
        if found is not None:
            before.setdefault(at, []).append(found)
    parts: list[Part] = []
    for at, sentence in enumerate(sentences):
        parts += before.get(at, [])
        _say(parts, sentence, " ")
    return parts


def _obelics(table: Mapping[str, Any], find: Find) -> list[Part]:
    """Place for place, either the text or the image is there."""
    parts: list[Part] = []
    seen = 0
    for text, image in zip(_list(table["texts"]), _list(table["images"]), strict=True):
        if image:
            found = find(seen, str(image))
            seen += 1
            parts += [found] if found is not None else []
        if text:
            _say(parts, text.strip(), "\n\n")
    return parts


def _list(value: Any) -> list[Any]:
    """A list of texts, or of nothing: what else JSON holds would be shown as Python writes it."""
    if not isinstance(value, list) or not all(x is None or isinstance(x, str) for x in value):
        raise TypeError(f"{value!r:.60} is no list of texts")
    return value


def _say(parts: list[Part], text: str, between: str) -> None:
    """Add a text; what follows another text is one with it, or tokens would be split there."""
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += between + text
    else:
        parts.append(f" {text}" if parts else text)


def _encoded(data: Any) -> Unread | None:
    if not data:
        return None
    return Pictures((Held(base64.b64decode(data, validate=True), "image_base64"),))
