"""One update of a linear toy whose gradients are known: its loss is features times weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flamvid.data.collate import Batch
from flamvid.train.chunks import chunks
from flamvid.train.objective import Objective
from flamvid.train.parallel import Parallel
from flamvid.train.update import Updater
from flamvid.train.world import World
from tests.train.toy import FEATURES, MEDIA, Linear, make_batch, make_flamingo

WEIGHTS = {"pages": 1.0, "videos": 0.03}
RATE = 0.5


def gradient(*batches: Batch) -> Tensor:
    """Of the mean loss per scored token of batches of one corpus, by hand."""
    total = torch.zeros(FEATURES)
    for batch in batches:
        assert batch.features is not None
        total += batch.features.sum((0, 1, 2, 3))
    return total / sum(int((b.targets >= 0).sum()) for b in batches)


def updater(clip: float = 1e9) -> tuple[Linear, Updater]:
    toy = Linear()
    return toy, Updater(
        Parallel(toy, World()), torch.optim.SGD(toy.parameters(), lr=RATE), WEIGHTS, clip
    )


PAGES, VIDEOS = make_batch("pages", 4, 1), make_batch("videos", 6, 2)


def test_accumulation_sums_the_weighted_gradients() -> None:
    toy, update = updater()
    update([PAGES, VIDEOS])
    wanted = -RATE * (gradient(PAGES) + 0.03 * gradient(VIDEOS))
    torch.testing.assert_close(toy.weight.detach(), wanted)


def test_round_robin_updates_on_one_after_the_other() -> None:
    """With momentum, as with any memory of gradients, that is not the sum of both."""
    steps = []
    for updates in ([[PAGES, VIDEOS]], [[PAGES], [VIDEOS]]):
        toy, update = updater()
        update.optimizer = torch.optim.SGD(toy.parameters(), lr=RATE, momentum=0.9)
        for batches in updates:
            update(batches)
        steps.append(toy.weight.detach())
    together, in_turn = steps
    first, second = gradient(PAGES), 0.03 * gradient(VIDEOS)
    torch.testing.assert_close(together, -RATE * (first + second))
    torch.testing.assert_close(in_turn, -RATE * (first + (0.9 * first + second)))
    assert not torch.allclose(together, in_turn, atol=0.1)


def test_batches_of_a_corpus_count_as_one_of_their_size() -> None:
    """Also where one has more scored tokens than the other: no mean of means."""
    parts = [make_batch("pages", 2, 3), make_batch("pages", 7, 4)]
    toy, update = updater()
    update(parts)
    torch.testing.assert_close(toy.weight.detach(), -RATE * gradient(*parts))
    assert not torch.allclose(gradient(*parts), sum(map(gradient, parts)) / 2, atol=1e-3)  # type: ignore[arg-type]


def test_the_norm_is_clipped_once_over_all_corpora() -> None:
    toy, update = updater(clip=1.0)
    updated = update([PAGES, VIDEOS])
    whole = gradient(PAGES) + 0.03 * gradient(VIDEOS)
    assert updated.norm == pytest.approx(float(whole.norm()))
    torch.testing.assert_close(toy.weight.detach(), -RATE * whole / whole.norm())


def test_a_loss_that_is_no_number_leaves_its_corpus_out_alone() -> None:
    assert VIDEOS.features is not None
    broken = replace(VIDEOS, features=VIDEOS.features.clone().fill_(float("nan")))
    toy, update = updater()
    updated = update([PAGES, broken])
    torch.testing.assert_close(toy.weight.detach(), -RATE * gradient(PAGES))
    assert updated.skipped == ("videos",)
    assert updated.applied
    assert updated.losses.keys() == {"pages"}


def test_a_corpus_is_left_out_whole_where_one_of_its_parts_is_no_number() -> None:
    """Those before it had their gradients by then."""
    assert VIDEOS.features is not None
    features = VIDEOS.features.clone()
    features[-1] = float("nan")
    broken = replace(VIDEOS, features=features)
    toy, update = updater()
    update.parts = partial(chunks, most=1)
    updated = update([broken, PAGES])
    torch.testing.assert_close(toy.weight.detach(), -RATE * gradient(PAGES))
    assert updated.skipped == ("videos",)
    assert updated.losses.keys() == {"pages"}


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    class Steep(Linear):
        def forward(self, batch: Batch | None) -> Tensor:
            return super().forward(batch) + self.weight.sqrt().sum()  # infinitely so at 0

    toy = Steep()
    update = Updater(Parallel(toy, World()), torch.optim.SGD(toy.parameters()), WEIGHTS, 1.0)
    updated = update([PAGES])
    assert not updated.applied
    assert not toy.weight.any()


@pytest.mark.parametrize("most", [1, 12, 25, 0])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(most: int) -> None:
    """Rows are put in another order, and cut behind their last scored token."""
    found = []
    for together in (10**9, most):
        model = make_flamingo()
        parallel = Parallel(Objective(model, MEDIA), World())
        update = Updater(
            parallel,
            torch.optim.SGD(model.parameters(), lr=1.0),
            WEIGHTS,
            1e9,
            partial(chunks, most=together),
        )
        updated = update([PAGES, VIDEOS])
        found.append((updated.losses, [p.detach().clone() for _, p in parallel.trained()]))
    (losses, whole), (again, parts) = found
    assert again == pytest.approx(losses)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    most=st.integers(0, 40),
)
def test_parts_hold_every_row_once_and_no_more_than_asked(lengths: list[int], most: int) -> None:
    batch = make_batch(rows=len(lengths))
    targets = torch.full_like(batch.targets, -100)
    for row, length in enumerate(lengths):
        targets[row, :length] = 3
    batch = replace(batch, targets=targets, attend_next=torch.zeros(len(lengths), dtype=torch.bool))
    parts = chunks(batch, most)
    keys = [key for part in parts for key in part.keys]
    assert sorted(keys) == sorted(batch.keys)
    assert sum(int((part.targets >= 0).sum()) for part in parts) == sum(lengths)
    for part in parts:
        at = [batch.keys.index(key) for key in part.keys]
        S = part.ids.shape[1]
        assert torch.equal(part.ids, batch.ids[at, :S])
        assert max(lengths[row] for row in at) in (S, 0)
        assert not most or part.ids.numel() <= most or len(at) == 1
