"""Greedy search, beam search and drawing over a Flamingo, with cached keys of the LM and the media.

Legend: B prompts, K beams, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flamvid.errors import InputError, WeightsError
from flamvid.generate.ahead import Ahead, Guesser, Written
from flamvid.generate.choose import draw, forbid
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.favour import Favour, Favoured, favour
from flamvid.generate.guess import Drafted, Lookup
from flamvid.generate.memory import Begun
from flamvid.models.draft import Draft, reads_few_at_once
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import MediaContext, TokenHead
from flamvid.ops import media_index

__all__ = ["Generated", "GenerationConfig", "OnToken", "generate", "search"]

OnToken = Callable[[int, int], None]
"""Called with the row of the prompt and the id of each token as it is chosen."""


@dataclass(slots=True)
class _Finished:
    """The best `size` finished beams of one prompt."""

    size: int
    length_penalty: float
    beams: list[tuple[float, Generated]]

    def add(self, ids: list[int], logprob: float, tokens: int, gained: float) -> None:
        """A finished text; `logprob` is with what it `gained` by favoured words."""
        score: float = logprob / tokens**self.length_penalty
        self.beams.append((score, Generated(tuple(ids), logprob - gained)))
        self.beams.sort(key=lambda beam: -beam[0])
        del self.beams[self.size :]

    def closed_to(self, logprob: float, tokens: int) -> bool:
        """Whether a running beam of this log-probability can no longer enter."""
        if len(self.beams) < self.size:
            return False
        reachable: float = logprob / tokens**self.length_penalty
        return self.beams[-1][0] >= reachable


def generate(
    model: Flamingo,
    latents_BMLD: Tensor,
    input_ids: Tensor,
    index_BS: Tensor,
    end_id: int,
    config: GenerationConfig,
    attention_mask: Tensor | None = None,
    head: TokenHead | None = None,
    media_id: int | None = None,
    favours: Sequence[Sequence[Favour]] | None = None,
    draft: Draft | None = None,
) -> list[Generated]:
    """The best continuation of each prompt; arguments as for `search`."""
    found = search(
        model,
        latents_BMLD,
        input_ids,
        index_BS,
        end_id,
        config,
        attention_mask,
        head=head,
        media_id=media_id,
        favours=favours,
        draft=draft,
    )
    return [texts[0] for texts in found]


@torch.inference_mode()
def search(
    model: Flamingo,
    latents_BMLD: Tensor,
    input_ids: Tensor,
    index_BS: Tensor,
    end_id: int,
    config: GenerationConfig,
    attention_mask: Tensor | None = None,
    *,
    head: TokenHead | None = None,
    media_id: int | None = None,
    favours: Sequence[Sequence[Favour]] | None = None,
    on_token: OnToken | None = None,
    begun: Begun | None = None,
    draft: Draft | None = None,
) -> list[list[Generated]]:
    """`config.returns` continuations of each prompt, the best first, to `end_id` or `max_tokens`.

    input_ids, index_BS, attention_mask [B,S], padded on the left; with `head` only its tokens are
    chosen from. Beams share the media: latents are encoded once and read once per layer. With
    `media_id` a media token that is written moves its beam on to the next media, as in a prompt.
    favours: for each prompt, words that its texts should rather say, by the ids of their tokens.
    on_token hears of every token at once, which beams can't: they change their mind.
    begun: what is read of one prompt already. Its cache is extended by the rest, and by the text if
    there is but one row of it.
    draft: of the model, to write one text sooner; it is the text that it would be without.
    """
    if on_token and (config.beams > 1 or config.returns > 1):
        raise InputError("tokens can't be told one by one of several beams or texts; ask for one")
    # Draws of one prompt are prompts of their own, each with the one beam that it is.
    draws = config.returns if config.draws else 1
    B, K = input_ids.shape[0] * draws, config.beams
    if draft is not None and B * K > 1:
        raise InputError(
            f"a draft guesses for one text, but there are {B * K} at a time; give one prompt, "
            "1 beam and 1 text, or leave the draft out"
        )
    mask = attention_mask
    to_logits = head or model.lm.head
    end = int(head.columns(torch.tensor(end_id, device=input_ids.device))) if head else end_id
    read = begun or Begun(model.lm.new_cache(), model.read(latents_BMLD, index_BS).layers, 0)
    cache, layers, past = read.cache, read.layers, read.tokens

    # Read the prompts once, then let each stand for its beams or draws.
    media = MediaContext(layers, index_BS[:, past:])
    hidden = model.lm(input_ids[:, past:], media, mask, cache, last=True)[:, -1]  # B x D
    rows_each = K * draws
    if begun and rows_each > 1:
        cache = model.lm.beginning(cache, input_ids.shape[1])
    cache.batch_repeat_interleave(rows_each)
    layers = tuple(layer.beyond() for layer in layers)
    # What the last token sees, the next ones see.
    index = index_BS[:, -1:].repeat_interleave(rows_each, 0)
    M = latents_BMLD.shape[1]
    mask = None if mask is None else mask.repeat_interleave(rows_each, 0)
    logits = to_logits(hidden.repeat_interleave(rows_each, 0))  # B*K x V
    guesser: Guesser | None = None
    if draft is not None:
        guesser = Drafted(draft, cache, layers, head, (end, media_id), config)
    elif config.lookup and B * K == 1 and reads_few_at_once(model.lm, layers, cache, hidden):
        guesser = Lookup(input_ids[0].tolist(), head, (end_id, media_id))
    ahead = None
    if guesser is not None:
        ahead = Ahead(model.lm, guesser, cache, layers, to_logits, config.max_tokens)

    texts: list[list[int]] = [[] for _ in range(B * K)]  # as columns of the logits
    wishes = [_columns(favours[b // draws], head) if favours else () for b in range(B)]
    favoured = [Favoured.at_start(wishes[row // K]) for row in range(B * K)]
    scores = torch.full((B, K), float("-inf"), device=input_ids.device)
    scores[:, 0] = 0.0  # at first all beams of a prompt are the same
    finished = [_Finished(K, config.length_penalty, []) for _ in range(B)]
    done = [False] * B
    dice = torch.Generator(device=input_ids.device).manual_seed(config.seed)

    for step in range(1, config.max_tokens + 1):
        logprobs = logits.float().log_softmax(-1)
        if step == 1 and bool(logprobs.isnan().any()):
            raise WeightsError(
                "the model's logits are no numbers: its weights are damaged, or too large for "
                f"{str(logits.dtype).removeprefix('torch.')}; get them again, or use another dtype"
            )
        logprobs = favour(forbid(logprobs, texts, end, config), favoured)
        V = logprobs.shape[-1]
        candidates = (scores[:, :, None] + logprobs.view(B, K, V)).flatten(1)
        if config.draws:
            where = draw(logprobs, config, dice)  # B x 1
            top = candidates.gather(1, where)
        else:
            # 2K candidates: however many of them end, K are left to go on.
            top, where = candidates.topk(min(2 * K, candidates.shape[1]), dim=1)

        parents, tokens, kept = [], [], []
        for b in range(B):
            rows: list[tuple[int, int, float]] = []
            ranked = zip(top[b].tolist(), where[b].tolist(), strict=True)
            for rank, (score, at) in enumerate(ranked):
                beam, token = b * K + at // V, at % V
                if score == float("-inf"):
                    continue
                if token == end:
                    if rank < K and not done[b]:
                        finished[b].add(texts[beam], score, step, favoured[beam].gained)
                elif len(rows) < K:
                    rows.append((beam, token, score))
            rows += [(b * K, end, float("-inf"))] * (K - len(rows))
            done[b] = done[b] or finished[b].closed_to(rows[0][2], step)
            parents += [r[0] for r in rows]
            tokens += [r[1] for r in rows]
            kept.append([r[2] for r in rows])
            if on_token and not done[b] and rows[0][2] > float("-inf"):
                on_token(b, int(head.ids[rows[0][1]]) if head else rows[0][1])

        texts = [[*texts[p], token] for p, token in zip(parents, tokens, strict=True)]
        favoured = [favoured[p].after(token) for p, token in zip(parents, tokens, strict=True)]
        scores = torch.tensor(kept, device=input_ids.device)
        if all(done) or step == config.max_tokens:
            break
        parent = torch.tensor(parents, device=input_ids.device)
        token_ids = torch.tensor(tokens, device=input_ids.device)[:, None]
        if head:
            token_ids = head.ids[token_ids]
        if parents != list(range(B * K)):
            cache.reorder_cache(parent)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(B * K, 1)], dim=1)
        index = index[parent]
        if media_id is not None:
            # Past the last media there is nothing new to see.
            seen = index[:, 0] + 1
            index = media_index(token_ids, media_id, seen=seen).clamp_max(M - 1)
        if ahead is not None:
            logits = ahead.after(Written(token_ids, index, mask, texts[0], favoured[0], dice))
        else:
            hidden = model.lm(token_ids, MediaContext(layers, index), mask, cache)[:, -1]
            logits = to_logits(hidden)

    if ahead is not None:
        ahead.end()
    for b in range(B):
        if not done[b]:  # out of tokens: what is still running competes as it stands
            for k in range(K):
                if scores[b, k] > float("-inf"):
                    row, total = b * K + k, float(scores[b, k])
                    finished[b].add(texts[row], total, config.max_tokens, favoured[row].gained)
    out = []
    for b in range(0, B, draws):
        beams = sorted((x for f in finished[b : b + draws] for x in f.beams), key=lambda x: -x[0])
        out.append([_named(made, head) for _, made in beams[: config.returns]])
    return out


def _named(made: Generated, head: TokenHead | None) -> Generated:
    """The same with the ids of its tokens for their columns."""
    if head is None:
        return made
    return Generated(tuple(head.ids[list(made.ids)].tolist()), made.logprob)


def _columns(favours: Sequence[Favour], head: TokenHead | None) -> tuple[Favour, ...]:
    """The same by columns of the logits, without those that the head can't say."""
    if head is None:
        return tuple(favours)
    out = []
    for word in favours:
        columns = head.columns(torch.tensor(word.tokens, device=head.ids.device)).tolist()
        if min(columns) >= 0:
            out.append(Favour(tuple(columns), word.worth))
    return tuple(out)
