"""Documents to the tensors of an update.

Legend: B batch, M media, T frames, N patches, F feature width, S tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flamvid.data.augment import fit
from flamvid.data.corpus import CorpusConfig
from flamvid.data.media import Pictures
from flamvid.data.samples import Document, Look, Media, Part
from flamvid.errors import SourceError
from flamvid.text.prompt import PromptFormat

__all__ = ["Bad", "Batch", "Row", "collate", "make_row"]

_UNSCORED = -100


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that can't be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one corpus. Media are `frames` uint8 [B,M,T,3,H,W] or `features` [B,M,T,N,F].

    keys: ids of the samples in it; those that can't be read are `bad` instead. frame_counts int64
    [B,M]: frames of each media; the rest of T is 0, and a media that a row does not have is one
    frame of 0. All three are None where no row has media.
    ids int64 [B,S]; targets int64 [B,S]: the token after each, -100 where it is not scored.
    attend_next bool [B]: rows whose tokens look at the next media rather than the previous.
    """

    corpus: str
    keys: tuple[str, ...]
    ids: Tensor
    targets: Tensor
    attend_next: Tensor
    frame_counts: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    bad: tuple[Bad, ...] = ()

    @property
    def scored(self) -> int:
        """How many tokens are."""
        return int((self.targets != _UNSCORED).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sample, as tokens and the media that they name in turn."""

    key: str
    ids: tuple[int, ...]
    media: tuple[Media, ...]
    attend_next: bool = False


def make_row(
    document: Document, config: CorpusConfig, prompts: PromptFormat, rng: random.Random | None
) -> Row:
    """A document's random window, with its media read, fitted and augmented.

    rng: None takes the start of the text, the first caption and the middle of a clip, unchanged.
    Raises SourceError where nothing is left to learn from.
    """
    parts = _pair(document, config, rng) if document.is_pair else list(document.parts)
    ids, media = _tokens(parts, prompts, paired=document.is_pair)
    ids, media = _window(ids, media, config.tokens(_is_picture(document)), config, prompts, rng)
    if not _scored(ids, prompts):
        raise SourceError(f"{document.id} has no text")
    looked = [_look(part, config, rng) for part in media]
    looks_ahead = bool(rng and media and not document.is_pair and rng.random() < config.next)
    return Row(document.id, tuple(ids), tuple(looked), looks_ahead)


def _is_picture(document: Document) -> bool:
    first = document.parts[0] if document.is_pair else None
    return isinstance(first, Pictures) and len(first.files) == 1


def _pair(document: Document, config: CorpusConfig, rng: random.Random | None) -> list[Part]:
    """One of a media's captions behind it, with a leading space or without (appendix B.1)."""
    text = rng.choice(document.texts) if rng else document.texts[0]
    spaced = rng is None or rng.random() < config.leading_space
    return [*document.parts, f"{' ' if spaced else ''}{text.strip()}"]


def _tokens(
    parts: Sequence[Part], prompts: PromptFormat, paired: bool
) -> tuple[list[int], list[Part]]:
    """`<BOS><media>text<EOC><EOS>`; in a page, `<EOC>` stands before each media too (section 2.4).

    Without the `<EOS>` for a model whose `<EOC>` is the LM's own.
    """
    special = _special(prompts)
    around = [] if prompts.around_id is None else [prompts.around_id]
    ids: list[int] = [] if prompts.bos_id is None else [prompts.bos_id]
    opening = len(ids)
    media: list[Part] = []
    for part in parts:
        if isinstance(part, str):
            # A page of the web may contain "<image>": it is no media of ours.
            found = prompts.tokenizer(part, add_special_tokens=False)["input_ids"]
            ids += [i for i in found if i not in special]
            continue
        if len(ids) > opening and ids[-1] not in special:
            ids.append(prompts.end_id)
        ids += [*(around if ids[-1:] != around else []), prompts.media_id, *around]
        media.append(part)
    closing = [] if prompts.eos_id is None else [prompts.eos_id]
    return [*ids, prompts.end_id, *closing], media


def _special(prompts: PromptFormat) -> set[int | None]:
    return {prompts.media_id, prompts.end_id, prompts.bos_id, prompts.around_id, prompts.eos_id}


def _window(
    ids: list[int],
    media: list[Part],
    length: int,
    config: CorpusConfig,
    prompts: PromptFormat,
    rng: random.Random | None,
) -> tuple[list[int], list[Part]]:
    """At most `length` tokens in a row that show a media, and its first few media.

    What follows a media beyond those would be told of one that is not there, and is cut off.
    """
    tags = [at for at, token in enumerate(ids) if token == prompts.media_id]
    start = 0
    if rng and len(ids) > length and config.kind in ("interleaved", "text"):
        last = len(ids) - length
        starts = sorted({s for t in tags for s in range(max(0, t - length + 2), min(t, last) + 1)})
        start = rng.choice(starts) if starts else rng.randint(0, last)
    tags = [at for at in tags if start <= at < start + length]
    stop = start + length
    if len(tags) > config.media:
        stop, tags = tags[config.media], tags[: config.media]
        if ids[stop - 1] == prompts.around_id:
            stop -= 1
    first = sum(token == prompts.media_id for token in ids[:start])
    return ids[start:stop], media[first : first + len(tags)]


def _scored(ids: Sequence[int], prompts: PromptFormat) -> bool:
    special = _special(prompts)
    return any(token not in special for token in ids[1:])


def _look(part: Part, config: CorpusConfig, rng: random.Random | None) -> Media:
    assert not isinstance(part, str)
    media = part if isinstance(part, Media) else part(Look(config.frames, config.fps, rng))
    if media.frames is None:
        return media
    return replace(media, frames=fit(media.frames, config, rng))


def collate(
    corpus: str, rows: Sequence[Row], prompts: PromptFormat, bad: Sequence[Bad] = (), size: int = 0
) -> Batch:
    """Rows as one batch, padded on the right; without rows, one of which nothing is scored.

    size: of an empty picture where no row has media, so that a row is what it is beside others;
    0 leaves such a batch to the language model alone.

    Loss is on text, `<EOC>` and `<EOS>`: not on media, what stands around them, or padding.
    """
    keys = tuple(row.key for row in rows)
    rows = rows or [Row("", (prompts.end_id, prompts.end_id), ())]
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), prompts.end_id)
    targets = torch.full((len(rows), longest), _UNSCORED)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        if keys:
            targets[at, : len(row.ids) - 1] = torch.tensor(row.ids[1:])
    for token in (prompts.media_id, prompts.bos_id, prompts.around_id):
        if token is not None and token != prompts.eos_id:  # some have one for BOS and EOS
            targets[targets == token] = _UNSCORED
    ahead = torch.tensor([row.attend_next for row in rows])
    batch = Batch(corpus, keys, ids, targets, ahead, bad=tuple(bad))
    held = [media for row in rows for media in row.media]
    if not held and size:
        held = [Media(np.zeros(1), torch.zeros(1, 3, size, size, dtype=torch.uint8))]
    return _with_media(batch, rows, held) if held else batch


def _with_media(batch: Batch, rows: Sequence[Row], held: Sequence[Media]) -> Batch:
    M, T = max(1, *(len(row.media) for row in rows)), max(len(media) for media in held)
    tensors = [m.frames if m.features is None else m.features for m in held]
    first = tensors[0]
    assert first is not None
    out = first.new_zeros(len(rows), M, T, *first.shape[1:])
    counts = torch.ones(len(rows), M, dtype=torch.int64)
    for b, row in enumerate(rows):
        for m, media in enumerate(row.media):
            frames = media.frames if media.features is None else media.features
            assert frames is not None
            if frames.shape[1:] != first.shape[1:]:
                raise SourceError(
                    f"{row.key} has media of {tuple(frames.shape[1:])}, another of its batch of "
                    f"{tuple(first.shape[1:])}; a corpus's features must be of one encoder"
                )
            out[b, m, : len(frames)] = frames
            counts[b, m] = len(frames)
    if held[0].features is None:
        return replace(batch, frames=out, frame_counts=counts)
    return replace(batch, features=out.float(), frame_counts=counts)
