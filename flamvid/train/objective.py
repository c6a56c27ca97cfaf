"""The loss of one batch (Flamingo, section 2.4): negative log-likelihood of its scored tokens.

Legend: B batch, M media, T frames, N patches, F feature width, S tokens, D width, X scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flamvid.data.collate import Batch
from flamvid.models.flamingo import Flamingo
from flamvid.models.lm import decoder_layers
from flamvid.models.new_tokens import NewHead
from flamvid.ops import halved, made_again, media_index, token_loss_
from flamvid.train.world import World

__all__ = ["Objective", "checkpoint_layers", "no_loss"]

_CHUNK = 128  # scored tokens whose logits exist at one time


class Objective(nn.Module):
    """Batches to losses; the module that is trained, whether by one process or by many."""

    def __init__(self, flamingo: Flamingo, media_id: int) -> None:
        super().__init__()
        self.flamingo, self.media_id = flamingo, media_id

    def forward(self, batch: Batch | None) -> Tensor:
        """The summed negative log-likelihood of a batch's scored tokens.

        With None, a loss of 0 that every trained parameter has a part in: its backward pass is
        where processes exchange what the batches before it left.
        """
        if batch is None:
            return no_loss(self.trained())
        model, ids = self.flamingo, batch.ids
        features_BMTNF, media = self._features(batch), None
        if features_BMTNF is not None:
            latents_BMLD = model.resample(features_BMTNF, batch.frame_counts)
            media = model.read(latents_BMLD, self._index(batch))
        # Below the first inserted layer nothing requires a gradient, so nothing is kept for one.
        hidden_BSD = model.lm(ids, media)
        scored = batch.targets >= 0
        return token_loss(hidden_BSD[scored], batch.targets[scored], model.lm.head)

    def padded(self, batch: Batch, world: World) -> Batch:
        """With an empty media for a process that has none while others do.

        Where a model is shared, all its parts must be used by all processes or by none.
        """
        here = batch.features is not None or batch.frames is not None
        somewhere = world.any(here)  # asked by all, or the one that has none waits for the others
        if here or not somewhere:
            return batch
        B = len(batch.ids)
        features = torch.zeros(B, 1, 1, 1, self.flamingo.resampler.config.features)
        counts = torch.ones(B, 1, dtype=torch.int64)
        place = batch.ids.device
        return replace(batch, features=features.to(place), frame_counts=counts.to(place))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained."""
        return self.flamingo.trained()

    def _features(self, batch: Batch) -> Tensor | None:
        """Of frozen vision they come with the batch; what learns looks at the pictures itself."""
        frames, counts = batch.frames, batch.frame_counts
        if batch.features is not None or frames is None or counts is None:
            return batch.features
        B, M, T = frames.shape[:3]
        real_BMT = torch.arange(T, device=counts.device) < counts[..., None]
        features_XNF = self.flamingo.encode(frames[real_BMT])
        out = features_XNF.new_zeros(B, M, T, *features_XNF.shape[1:])
        return out.index_put((real_BMT,), features_XNF)

    def _index(self, batch: Batch) -> Tensor:
        """Which media each token sees, int32 [B,S]; some rows look ahead (appendix A.3.2)."""
        previous = media_index(batch.ids, self.media_id)
        following = media_index(batch.ids, self.media_id, "next")
        return torch.where(batch.attend_next[:, None], following, previous)


def no_loss(trained: Iterable[tuple[str, Tensor]]) -> Tensor:
    """0, that every trained parameter has a part in."""
    return torch.stack([p.sum() * 0 for _, p in trained]).sum()


def token_loss(hidden_XD: Tensor, targets_X: Tensor, head: nn.Module) -> Tensor:
    """Summed cross-entropy. The logits of all tokens never exist together."""
    learnt = [p for p in head.parameters() if p.requires_grad]
    loss: Tensor = _TokenLoss.apply(head, targets_X, hidden_XD, *learnt)
    return loss


class _TokenLoss(torch.autograd.Function):
    """Gradients are taken chunk by chunk on the way forward, while the logits are there.

    Keeping logits for later would take more memory than all else in training a small model, and
    making them again would take a third more time.
    """

    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, targets_X: Tensor, hidden_XD: Tensor, *learnt: Tensor
    ) -> Tensor:
        total = hidden_XD.new_zeros((), dtype=torch.float32)
        grads: list[Tensor] = [torch.zeros_like(x) for x in learnt]
        parts = []
        for hidden, targets in zip(hidden_XD.split(_CHUNK), targets_X.split(_CHUNK), strict=True):
            with torch.enable_grad():
                leaf = _as_multiplied(hidden.detach(), head).requires_grad_()
                logits_XV = head(leaf)
            grad_XV = logits_XV.detach()  # the same memory
            total += token_loss_(grad_XV, targets).sum()
            if any(ctx.needs_input_grad):
                part, *rest = torch.autograd.grad(
                    logits_XV,
                    [leaf, *learnt],
                    grad_XV,
                    allow_unused=True,
                    materialize_grads=True,
                )
                parts.append(part.to(hidden_XD.dtype))
                for grad, more in zip(grads, rest, strict=True):
                    grad += more
        ctx.save_for_backward(torch.cat(parts) if parts else torch.zeros_like(hidden_XD), *grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden_XD, *learnt = ctx.saved_tensors
        return None, None, hidden_XD * grad.to(hidden_XD.dtype), *[x * grad for x in learnt]


def _as_multiplied(hidden_XD: Tensor, head: nn.Module) -> Tensor:
    """In the dtype of the head's products: its logits are then theirs, and not widened for us."""
    return halved(hidden_XD, head.head if isinstance(head, NewHead) else head)


def checkpoint_layers(flamingo: Flamingo) -> None:
    """Compute the activations of each layer again on the way back, rather than keep them."""
    for layer in [*decoder_layers(flamingo.lm.lm), *flamingo.lm.inserted]:
        # Not the layer's hooks: what they read is known on the way forward alone.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, context_fn=made_again
        )
