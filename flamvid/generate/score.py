"""How likely given texts are after a prompt, without searching (the paper's close-ended tasks).

Legend: O options, S tokens of the prompt, T tokens of the longest option, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flamvid.errors import InputError
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import MediaContext, TokenHead

__all__ = ["score_options"]


@torch.inference_mode()
def score_options(
    model: Flamingo,
    latents_1MLD: Tensor,
    input_ids: Tensor,
    index_1S: Tensor,
    options: Sequence[Sequence[int]],
    *,
    head: TokenHead | None = None,
) -> list[list[float]]:
    """The log-probability of each token of each option as the text that follows the prompt.

    input_ids [1,S]: read once; all options then go through the LM together and share its keys and
    those of the media. Their sum ranks options as the paper does, their mean leaves length out.
    With `head`, probabilities are among its tokens, and one that it lacks is an InputError.
    """
    if not options or not all(options):
        raise InputError("an option to score is empty; give each at least one token")
    O, device = len(options), input_ids.device  # noqa: E741
    rows = [torch.tensor(option, device=device) for option in options]
    tokens_OT = pad_sequence(rows, batch_first=True)
    columns_OT = head.columns(tokens_OT) if head else tokens_OT
    real_OT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    if bool((columns_OT[real_OT] < 0).any()):
        raise InputError("an option has tokens that the model never says; score without its head")

    # What the prompt leaves behind, once for each option.
    cache = model.lm.new_cache()
    media = model.read(latents_1MLD, index_1S)
    last = model.lm(input_ids, media, None, cache, last=True).expand(O, -1, -1)  # O x 1 x D
    hidden = last
    if tokens_OT.shape[1] > 1:
        cache.batch_repeat_interleave(O)
        inputs = tokens_OT[:, :-1]
        layers = tuple(layer.beyond() for layer in media.layers)
        seen = MediaContext(layers, index_1S[:, -1:].expand(inputs.shape))
        # Padding stands behind what is scored: a causal LM needs no mask for it.
        hidden = torch.cat([last, model.lm(inputs, seen, None, cache)], dim=1)  # O x T x D

    logprobs_OTV = (head or model.lm.head)(hidden).float().log_softmax(-1)
    chosen_OT = logprobs_OTV.gather(2, columns_OT.clamp_min(0)[:, :, None])[:, :, 0]
    return [chosen_OT[o, : len(option)].tolist() for o, option in enumerate(options)]
