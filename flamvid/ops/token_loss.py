"""The softmax loss of tokens whose logits are made once and not needed again.

The reference here is the formula, in float32; flamvid._C takes its place on CPUs, where a row of
logits stays in the cache from its maximum to its gradient.

Legend: X tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flamvid.errors import InputError

__all__ = ["token_loss_"]

_DTYPES = (torch.float32, torch.bfloat16)


def token_loss_(logits_XV: Tensor, targets_X: Tensor) -> Tensor:
    """Negative log-probabilities of the targets, float32 [X]; the logits become their gradient.

    That is softmax less one-hot, in the dtype of the logits. Columns of minus infinity are no
    token's. targets int64, each a column. Raises InputError where shapes or types don't fit.
    """
    if logits_XV.dim() != 2 or targets_X.shape != logits_XV.shape[:1]:
        raise InputError(
            f"logits are {tuple(logits_XV.shape)} and targets {tuple(targets_X.shape)}; "
            "must be [X,V] and [X]"
        )
    if not logits_XV.is_floating_point() or targets_X.dtype != torch.int64:
        raise InputError(
            f"logits are {logits_XV.dtype} and targets {targets_X.dtype}; "
            "must be floating point and int64"
        )
    losses: Tensor
    if logits_XV.dtype in _DTYPES and logits_XV.is_contiguous():
        losses = torch.ops.flamvid.token_loss_(logits_XV, targets_X)
        return losses
    whole = logits_XV.float().contiguous()
    losses = torch.ops.flamvid.token_loss_(whole, targets_X)
    logits_XV.copy_(whole)
    return losses


@torch.library.custom_op("flamvid::token_loss_", mutates_args=("logits",))
def _token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    # torch's own cross-entropy keeps three tables as large as this one.
    wide_XV, at_X1 = logits.float(), targets[:, None]
    wide_XV -= wide_XV.amax(1, keepdim=True)
    asked_X1 = wide_XV.gather(1, at_X1)
    sums_X1 = wide_XV.exp_().sum(1, keepdim=True)
    losses_X1 = sums_X1.log() - asked_X1
    wide_XV /= sums_X1
    wide_XV.scatter_add_(1, at_X1, -torch.ones_like(asked_X1))
    if wide_XV is not logits:
        logits.copy_(wide_XV)
    return losses_X1[:, 0]


@_token_loss.register_fake
def _(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.float32)
