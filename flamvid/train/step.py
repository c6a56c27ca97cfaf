"""One update of the caption stage.

Legend: B media, C captions of each, R = B*C rows, S tokens, V trained vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import LanguageModel, TokenHead
from flamvid.ops import media_index
from flamvid.text.prompt import PromptFormat

__all__ = ["Beginnings", "TextBatch", "caption_loss", "caption_rows", "vocabulary"]

_ROWS = 16  # captions that go through the LM together


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """Prompt, caption, end: `ids` [R,S]; `targets` [R,S-1] in the vocabulary, -100 elsewhere."""

    ids: Tensor
    targets: Tensor


class Beginnings:
    """What the layers of an LM below the first new one make of texts: made once for each text.

    Each goes through them alone: if its bits depended on its neighbours, a run that was resumed
    would not end as one that was not.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.layers = lm, lm.unmoved
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, ids_RS: Tensor, lengths: Sequence[int]) -> tuple[int, Tensor]:
        """As `LanguageModel.forward` takes it; `lengths` of the texts, behind which it is 0."""
        rows = [tuple(row[:n]) for row, n in zip(ids_RS.tolist(), lengths, strict=True)]
        states = [self._of(row) for row in rows]
        out_RSD = states[0].new_zeros(*ids_RS.shape, states[0].shape[-1])
        for row, text in enumerate(states):
            out_RSD[row, : len(text)] = text
        return self.layers, out_RSD

    @torch.no_grad()
    def _of(self, row: tuple[int, ...]) -> Tensor:
        if row not in self._known:
            ids = torch.tensor([row])
            self._known[row] = self.lm.states(ids, torch.ones_like(ids), self.layers)[0]
        return self._known[row]


def vocabulary(prompts: PromptFormat, captions: Sequence[Sequence[str]]) -> Tensor:
    """Sorted ids of all tokens that captions use, and of the end token, int64 [V]."""
    used = {prompts.end_id}
    for group in captions:
        for caption in group:
            used.update(prompts.encode_text(f" {caption}"))
    return torch.tensor(sorted(used))


def caption_rows(
    prompts: PromptFormat,
    captions: Sequence[str],
    head: TokenHead,
    max_tokens: int,
    labels: Sequence[Sequence[str]] | None = None,
) -> TextBatch:
    """Captions as `<BOS><media> text<EOC>`; loss on the text and the end only (A.3.2).

    Targets are places among the head's tokens; what it does not have is not scored. labels: those
    of each caption's media, said in front of it.
    """
    openings = [prompts.caption(labels=said) for said in labels or [()] * len(captions)]
    rows = []
    for opening, caption in zip(openings, captions, strict=True):
        text = prompts.encode_text(f" {caption}")
        # A caption cut short does not end: no end token after it.
        whole = [*text, prompts.end_id]
        rows.append(opening + whole[:max_tokens])
    S = max(map(len, rows))
    # Padding stands on the right, behind what is scored: a causal LM needs no mask for it.
    ids = torch.tensor([row + [prompts.end_id] * (S - len(row)) for row in rows])
    targets = head.columns(ids[:, 1:].contiguous())
    at = torch.arange(1, S)
    starts, lengths = (torch.tensor([len(x) for x in each])[:, None] for each in (openings, rows))
    targets = targets.masked_fill((at < starts) | (at >= lengths), -100)
    return TextBatch(ids, targets)


def caption_loss(
    model: Flamingo,
    features_BTNF: Tensor,
    frame_counts: Tensor,
    text: TextBatch,
    head: TokenHead,
    media_id: int,
    beginnings: Beginnings | None = None,
) -> Tensor:
    """Mean negative log-likelihood per token; R rows share the B media in order.

    Rows go through the LM sixteen at a time, sorted by length: captions of a batch differ so much
    in length that padding them all to the longest would double the work.
    """
    latents_BMLD = model.resample(features_BTNF[:, None], frame_counts[:, None])
    captions = text.ids.shape[0] // features_BTNF.shape[0]
    lengths = (text.targets >= 0).mul(torch.arange(1, text.ids.shape[1])).amax(1)
    total = features_BTNF.new_zeros(())
    for rows in lengths.argsort().split(_ROWS):
        S = int(lengths[rows].max())
        inputs, targets = text.ids[rows, :S], text.targets[rows, :S]
        media = model.read(latents_BMLD[rows // captions], media_index(inputs, media_id))
        begun = beginnings(inputs, lengths[rows].tolist()) if beginnings else None
        hidden_RSD = model.lm(inputs, media, begun=begun)
        scored = targets >= 0
        logits_XV = head(hidden_RSD[scored])
        total = total + F.cross_entropy(logits_XV, targets[scored], reduction="sum")
    return total / (text.targets >= 0).sum()
