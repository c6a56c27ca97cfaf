"""A batch in parts that fit in memory, without the padding that its longest row asks for.

Losses are sums over tokens, so that parts one after the other give the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flamvid.data.collate import Batch

__all__ = ["chunks"]


def chunks(batch: Batch, most: int = 0) -> list[Batch]:
    """Parts of at most so many tokens, padding included, or of one row; 0 is all in one part.

    Rows of like length stand together; what follows a part's last scored token is cut off.
    """
    S = batch.ids.shape[1]
    # A causal model needs no token behind the one whose successor is asked for.
    lengths_B = ((batch.targets >= 0) * torch.arange(1, S + 1, device=batch.ids.device)).amax(1)
    # But what looks at the next media sees none if that is cut off.
    lengths = lengths_B.clamp_min(1).masked_fill(batch.attend_next, S).tolist()
    if not most:
        return [_part(batch, range(len(lengths)), max(lengths))]
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= most:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [_part(batch, sorted(rows), lengths[rows[0]]) for rows in parts]


def _part(batch: Batch, rows: Sequence[int], length: int) -> Batch:
    at = torch.tensor(rows, device=batch.ids.device)

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[at]

    return replace(
        batch,
        keys=tuple(batch.keys[row] for row in rows) if batch.keys else (),
        ids=batch.ids[at, :length],
        targets=batch.targets[at, :length],
        attend_next=batch.attend_next[at],
        frame_counts=of(batch.frame_counts),
        frames=of(batch.frames),
        features=of(batch.features),
    )
