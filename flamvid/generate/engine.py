"""Greedy and beam search over a Flamingo, with cached keys of the LM and of the media.

Legend: B prompts, K beams, S tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import MediaContext, TokenHead
from flamvid.ops import media_index

__all__ = ["Generated", "GenerationConfig", "generate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How to search. A finished beam scores `logprob / tokens ** length_penalty`.

    temperature: above 0, tokens are drawn with probabilities p ** (1 / temperature) instead, from
    the generator that `seed` starts; there are no beams then.
    """

    beams: int = 3
    max_tokens: int = 20
    length_penalty: float = 0.0
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("beams", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; must be at least 1")
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; must be at least 0")
        if self.temperature > 0 and self.beams > 1:
            raise InputError(
                f"temperature {self.temperature:g} draws tokens, which {self.beams} beams do not; "
                "give 1 beam"
            )


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids without the end token, and the sum of their log-probabilities (end included)."""

    ids: tuple[int, ...]
    logprob: float


@dataclass(slots=True)
class _Finished:
    """The best `size` finished beams of one prompt."""

    size: int
    length_penalty: float
    beams: list[tuple[float, Generated]]

    def add(self, ids: list[int], logprob: float, tokens: int) -> None:
        score: float = logprob / tokens**self.length_penalty
        self.beams.append((score, Generated(tuple(ids), logprob)))
        self.beams.sort(key=lambda beam: -beam[0])
        del self.beams[self.size :]

    def closed_to(self, logprob: float, tokens: int) -> bool:
        """Whether a running beam of this log-probability can no longer enter."""
        if len(self.beams) < self.size:
            return False
        reachable: float = logprob / tokens**self.length_penalty
        return self.beams[-1][0] >= reachable


@torch.inference_mode()
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
) -> list[Generated]:
    """The best continuation of each prompt, until `end_id` or `max_tokens`.

    input_ids, index_BS, attention_mask [B,S], padded on the left; with `head` only its tokens are
    chosen from. Beams share the media: latents are encoded once and read once per layer. With
    `media_id` a media token that is written moves its beam on to the next media, as in a prompt.
    """
    B, K = input_ids.shape[0], config.beams
    cache = DynamicCache(config=model.lm.lm.config)
    mask = attention_mask
    to_logits = head or model.lm.head
    end = int(head.columns(torch.tensor(end_id, device=input_ids.device))) if head else end_id
    media = model.read(latents_BMLD, index_BS)

    # Read the prompts once, then let each stand for its K beams.
    hidden = model.lm(input_ids, media, mask, cache)[:, -1]  # B x D
    cache.batch_repeat_interleave(K)
    layers = tuple(layer.repeat(K) for layer in media.layers)
    index = index_BS[:, -1:].repeat_interleave(K, 0)  # what the last token sees, the next ones see
    M = latents_BMLD.shape[1]
    mask = None if mask is None else mask.repeat_interleave(K, 0)
    hidden = hidden.repeat_interleave(K, 0)  # B*K x D

    ids = input_ids.new_empty(B * K, 0)
    scores = torch.full((B, K), float("-inf"), device=input_ids.device)
    scores[:, 0] = 0.0  # at first all beams of a prompt are the same
    finished = [_Finished(K, config.length_penalty, []) for _ in range(B)]
    done = [False] * B
    dice = torch.Generator(device=input_ids.device).manual_seed(config.seed)

    for step in range(1, config.max_tokens + 1):
        logprobs = to_logits(hidden).float().log_softmax(-1)  # B*K x V
        V = logprobs.shape[-1]
        candidates = (scores[:, :, None] + logprobs.view(B, K, V)).flatten(1)
        if config.temperature > 0:
            chances = (logprobs / config.temperature).softmax(-1)
            where = chances.multinomial(1, generator=dice)  # B x 1
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
                        finished[b].add(ids[beam].tolist(), score, step)
                elif len(rows) < K:
                    rows.append((beam, token, score))
            rows += [(b * K, end, float("-inf"))] * (K - len(rows))
            done[b] = done[b] or finished[b].closed_to(rows[0][2], step)
            parents += [r[0] for r in rows]
            tokens += [r[1] for r in rows]
            kept.append([r[2] for r in rows])

        parent = torch.tensor(parents, device=ids.device)
        token_ids = torch.tensor(tokens, device=ids.device, dtype=ids.dtype)[:, None]
        if head:
            token_ids = head.ids[token_ids]
        ids = torch.cat([ids[parent], token_ids], dim=1)
        scores = torch.tensor(kept, device=ids.device)
        if all(done) or step == config.max_tokens:
            break
        if K > 1:
            cache.reorder_cache(parent)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(B * K, 1)], dim=1)
        index = index[parent]
        if media_id is not None:
            # Past the last media there is nothing new to see.
            seen = index[:, 0] + 1
            index = media_index(token_ids, media_id, seen=seen).clamp_max(M - 1)
        hidden = model.lm(token_ids, MediaContext(layers, index), mask, cache)[:, -1]

    for b in range(B):
        if not done[b]:  # out of tokens: what is still running competes as it stands
            for k in range(K):
                if scores[b, k] > float("-inf"):
                    finished[b].add(ids[b * K + k].tolist(), float(scores[b, k]), ids.shape[1])
    return [f.beams[0][1] for f in finished]
