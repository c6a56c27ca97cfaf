"""Bounds and choices of the memories, on features made up for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flamvid.errors import InputError
from flamvid.live.memory import Memory, MemoryConfig, Sizes
from flamvid.live.moment import Moment
from flamvid.live.policies import Policy
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.resampler_keys import KeyReader

N, F = 6, 8
READER = KeyReader(
    PerceiverResampler(ResamplerConfig(features=F, width=16, heads=2, head_width=8, latents=2))
)
SIZES = Sizes(N, F, torch.float32, READER.nbytes(N, torch.float32))


def stream(length: int, seed: int, still: float = 0.5) -> list[Tensor]:
    """Features of frames of which many look like the one before, wholly or in part."""
    dice = torch.Generator().manual_seed(seed)
    out = [torch.rand(N, F, generator=dice)]
    for _ in range(length - 1):
        moves = torch.rand(N, 1, generator=dice) > still
        out.append(torch.where(moves, torch.rand(N, F, generator=dice), out[-1]))
    return out


def remember(memory: Memory, features: list[Tensor]) -> None:
    for tick, one in enumerate(features):
        memory.add(one, tick + 0.5, float(tick), tick + 1.0)


def held(moments: list[Moment]) -> list[tuple[float, int]]:
    return [(m.time, m.frames) for m in moments]


@pytest.mark.parametrize("policy", list(Policy))
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 60), st.integers(0, 9))
def test_the_cap_is_held_at_every_frame(
    policy: Policy, recent: int, long: int, length: int, seed: int
) -> None:
    config = MemoryConfig(policy=policy, recent=recent, long=long)
    memory, most = Memory(config, READER), SIZES.most(config)
    for tick, one in enumerate(stream(length, seed)):
        memory.add(one, tick + 0.5, float(tick), tick + 1.0)
        moments = memory.moments()
        assert memory.nbytes <= most
        assert all(m.keys is not None for m in moments)
        # In order, from the last frames as they were.
        times = [m.time for m in moments]
        assert times == sorted(times)
        assert times[-1] == tick + 0.5
        assert len(memory.recent) == min(tick + 1, recent)
    if policy in (Policy.MERGE, Policy.KMEANS):  # nothing is forgotten, it only blurs
        assert sum(m.frames for m in moments) == length
        assert min(m.start for m in moments) == 0.0


@pytest.mark.parametrize("policy", list(Policy))
def test_the_same_stream_leaves_the_same_memory(policy: Policy) -> None:
    config = MemoryConfig(policy=policy, recent=3, long=4)
    one, other = Memory(config), Memory(config)
    for memory in (one, other):
        remember(memory, stream(50, seed=1))
    assert held(one.moments()) == held(other.moments())
    for a, b in zip(one.moments(), other.moments(), strict=True):
        assert torch.equal(a.features, b.features)


def test_a_window_is_exact() -> None:
    features = stream(20, seed=2)
    memory = Memory(MemoryConfig(recent=7))
    remember(memory, features)
    kept = memory.moments()
    assert all(torch.equal(m.features, f) for m, f in zip(kept, features[-7:], strict=True))


def test_merge_joins_the_two_neighbours_that_are_most_alike() -> None:
    a, b = torch.eye(F)[0].repeat(N, 1), torch.eye(F)[1].repeat(N, 1)
    memory = Memory(MemoryConfig(policy=Policy.MERGE, recent=1, long=2))
    remember(memory, [a, a, b, a])
    assert held(memory.moments()) == [(1.0, 2), (2.5, 1), (3.5, 1)]
    assert torch.equal(memory.long[0].features, a)
    assert (memory.long[0].start, memory.long[0].end) == (0.0, 2.0)


def test_clusters_find_what_comes_back() -> None:
    scenes = [torch.eye(F)[i].repeat(N, 1) for i in range(3)]
    dice = torch.Generator().manual_seed(0)
    shown = [scenes[i % 3] + 0.01 * torch.rand(N, F, generator=dice) for i in range(40)]
    memory = Memory(MemoryConfig(policy=Policy.KMEANS, recent=1, long=3))
    remember(memory, shown)
    memory.tidy.extra = 0  # cluster what has been gathered since
    long = memory.tidy(memory.long)
    assert len(long) == 3
    assert sum(m.frames for m in long) == 39
    assert sorted(int(m.mean.argmax()) for m in long) == [0, 1, 2]
    for moment in long:  # each cluster is the mean of one scene
        assert torch.allclose(moment.features, scenes[int(moment.mean.argmax())], atol=0.02)


def test_patches_that_show_nothing_new_are_dropped() -> None:
    still, moved = torch.eye(F)[0].repeat(N, 1), torch.eye(F)[0].repeat(N, 1)
    moved[2] = torch.eye(F)[3]
    memory = Memory(MemoryConfig(policy=Policy.DROP, recent=1, long=4))
    remember(memory, [still, still, moved, still, still])
    whole, back = memory.long[0], memory.long[1]
    assert (len(whole.features), whole.frames, whole.end) == (N, 2, 2.0)  # it lasted
    assert torch.equal(back.features, moved[2:3])
    assert [len(m.features) for m in memory.long] == [N, 1, 1]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 400_000), st.sampled_from(Policy))
def test_a_cap_is_kept_or_refused(recent: int, long: int, cap: int, policy: Policy) -> None:
    config = MemoryConfig(policy=policy, recent=recent, long=long)
    if SIZES.most(MemoryConfig(policy=policy, recent=1, long=1)) > cap:
        with pytest.raises(InputError, match="allow more"):
            SIZES.within(config, cap)
        return
    fits = SIZES.within(config, cap)
    assert SIZES.most(fits) <= cap
    assert fits.recent <= recent
    assert fits.long <= long
    if fits.long < long and policy is not Policy.WINDOW:  # no place is given away for nothing
        assert SIZES.most(replace(fits, recent=recent, long=fits.long + 1)) > cap
    if fits.recent < recent:
        assert SIZES.most(replace(fits, recent=fits.recent + 1)) > cap


def test_a_window_of_years_is_cut_down_at_once() -> None:
    fits = SIZES.within(MemoryConfig(policy=Policy.MERGE, recent=10**12, long=10**12), 10**6)
    assert SIZES.most(fits) <= 10**6


def test_a_new_scene_leaves_the_window() -> None:
    memory = Memory(MemoryConfig(recent=4))
    remember(memory, stream(4, seed=3))
    memory.turn()
    assert [m.time for m in memory.moments()] == [3.5]


def test_what_can_be_no_memory() -> None:
    with pytest.raises(InputError, match="0 recent frames"):
        MemoryConfig(recent=0)
    with pytest.raises(InputError, match="0 places"):
        MemoryConfig(policy=Policy.MERGE, long=0)
