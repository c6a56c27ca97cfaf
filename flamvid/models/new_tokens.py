"""Rows of a language model for tokens that it was released without, such as the paper's `<EOC>`.

They alone are trained: a gradient and two moments for a few rows, where a resized table has them
for all of its fifty thousand.

Legend: n new tokens, D width, V vocabulary of the frozen table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flamvid.ops import linear

__all__ = ["NewHead", "NewTokens"]


class NewTokens(nn.Module):
    """The rows [n,D] of the input table, and of the head [n,D] where that is another table.

    deep: whether input rows are trained through the whole language model. That costs a backward
    pass through its lowest layers, so it is for models whose first inserted layer is the lowest.
    """

    def __init__(self, table: nn.Embedding, head: nn.Module, ids: Sequence[int], deep: bool):
        super().__init__()
        self.ids, self.deep = tuple(ids), deep
        tied = head.weight is table.weight
        # An input row that no gradient reaches stays the table's mean.
        self.weight = nn.Parameter(_rows(table.weight, ids), requires_grad=deep or tied)
        self.head_weight = None if tied else nn.Parameter(_rows(head.weight, ids))
        known = table.forward

        def read(ids_BS: Tensor) -> Tensor:
            return self._read(known, ids_BS)

        table.forward = read  # type: ignore[method-assign, assignment]

    def _read(self, known: Callable[[Tensor], Tensor], ids_BS: Tensor) -> Tensor:
        new = torch.tensor(self.ids, device=ids_BS.device)
        is_new_BSn = ids_BS[..., None] == new
        any_BS1 = is_new_BSn.any(-1, keepdim=True)
        table_BSD = known(ids_BS.masked_fill(any_BS1[..., 0], 0))
        rows_nD = (self.weight if self.deep else self.weight.detach()).to(table_BSD.dtype)
        return torch.where(any_BS1, is_new_BSn.to(rows_nD.dtype) @ rows_nD, table_BSD)


class NewHead(nn.Module):
    """The frozen head's logits with those of the new tokens in their columns."""

    def __init__(self, head: nn.Module, tokens: NewTokens) -> None:
        super().__init__()
        self.head, self.tokens = head, tokens

    @property
    def weight(self) -> Tensor:
        """All rows together; made anew at each call."""
        frozen = self.head.weight
        assert isinstance(frozen, Tensor)
        at = torch.tensor(self.tokens.ids, device=frozen.device)
        more = frozen.new_zeros(max(int(at.max()) + 1 - len(frozen), 0), frozen.shape[1])
        return torch.cat([frozen, more]).index_copy(0, at, self._rows.to(frozen.dtype))

    @property
    def _rows(self) -> Tensor:
        tokens = self.tokens
        return tokens.weight if tokens.head_weight is None else tokens.head_weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [...,D] to logits [...,V or more]."""
        logits: Tensor = self.head(hidden)
        new = linear(hidden, self._rows.to(hidden.dtype)).to(logits.dtype)
        at = torch.tensor(self.tokens.ids, device=logits.device)
        more = max(int(at.max()) + 1 - logits.shape[-1], 0)
        if more:  # a row that neither table has is of no token: it must not be chosen
            logits = nn.functional.pad(logits, (0, more), value=float("-inf"))
        return logits.index_copy_(-1, at, new)  # in place: logits are as large as all else


@torch.no_grad()
def _rows(table: object, ids: Sequence[int]) -> Tensor:
    """What new rows start from: the table's own where it has them, else its mean."""
    assert isinstance(table, Tensor)
    mean_D = table.float().mean(0)
    return torch.stack([table[i].float() if i < len(table) else mean_D for i in ids])
