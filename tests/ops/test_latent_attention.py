"""Attention to latents without keys and values: the kernel against the formula."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamvid.ops import LATENT_STEP, implementation, latent_attention

pytestmark = pytest.mark.skipif(
    implementation("latent_attention").name != "kernel", reason="flamvid._C is not there"
)


@pytest.fixture(autouse=True, scope="module")
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


steps = st.integers(1, 4).map(lambda n: n * LATENT_STEP)


def arguments(
    S: int, H: int, d: int, M: int, L: int, D: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float]:
    dice = torch.Generator().manual_seed(seed)
    latents = torch.randn(M, L, D, generator=dice)
    to_keys, to_values = (torch.randn(H * d, D, generator=dice) * D**-0.5 for _ in range(2))
    q = 2 * torch.randn(S, H * d, generator=dice)
    index = torch.randint(-1, M, (S,), generator=dice).int()
    return (
        q,
        latents,
        latents.mT.contiguous(),
        to_keys,
        to_values,
        index,
        H,
        d**-0.5,
    )


@settings(max_examples=60, deadline=None)
@given(
    S=st.integers(0, 90),
    H=st.integers(1, 3),
    d=steps,
    M=st.integers(1, 4),
    L=steps,
    D=st.one_of(steps, st.just(272)),  # more than is in work at a time
    seed=st.integers(0, 2**32),
)
def test_it_is_attention_by_keys_and_values(
    S: int, H: int, d: int, M: int, L: int, D: int, seed: int
) -> None:
    given = arguments(S, H, d, M, L, D, seed)
    found = latent_attention(*given)
    with torch.enable_grad():
        formula = latent_attention(*given)
    torch.testing.assert_close(found, formula, atol=2e-5, rtol=1e-4)
    assert not found[given[5] < 0].any()


def test_each_media_is_seen_by_its_own_tokens_alone() -> None:
    q, latents, turned, *weights, index, H, scale = arguments(30, 2, 16, 3, 16, 32, 0)
    before = latent_attention(q, latents, turned, *weights, index, H, scale)
    other = latents.clone()
    other[1] = torch.nan
    after = latent_attention(q, other, other.mT.contiguous(), *weights, index, H, scale)
    assert torch.equal(after[index != 1], before[index != 1])
    assert after[index == 1].isnan().all()


def test_with_gradients_it_is_the_formula() -> None:
    q, *others = arguments(9, 2, 16, 2, 16, 32, 0)
    with torch.enable_grad():
        q.requires_grad_()
        out = latent_attention(q, *others)
        (slope,) = torch.autograd.grad(out.square().sum(), q)
    step = 1e-2 * slope / slope.norm()
    gain = [latent_attention(q + s * step, *others).double().square().sum() for s in (1, -1)]
    assert float(gain[0] - gain[1]) == pytest.approx(2e-2 * float(slope.norm()), rel=1e-2)


def test_threads_and_their_number_change_nothing() -> None:
    given = arguments(70, 3, 32, 4, 32, 64, 1)
    want = latent_attention(*given)
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(torch.no_grad()(lambda _: latent_attention(*given)), "12345678")
        assert all(torch.equal(x, want) for x in runs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(latent_attention(*given), want)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("at", "change", "said"),
    [
        (0, lambda x: x[:, 1:], "must be \\[S,heads"),
        (0, lambda x: x.double(), "q is no float32"),
        (1, lambda x: x[:, 1:], "multiples of 16"),
        (2, lambda x: x[1:], "turned"),
        (2, lambda x: x.mT, "turned"),
        (3, lambda x: x.mT, "to_keys"),
        (4, lambda x: x.mT, "to_values"),
        (5, lambda x: x.long(), "int32"),
        (5, lambda x: x[1:], "int32"),
        (5, lambda x: x + 9, "from -1"),
        (5, lambda x: x - 9, "from -1"),
        (6, lambda _: 5, "must be \\[S,heads"),
        (6, lambda _: 4, "multiples of 16"),
        (6, lambda _: 0, "must be \\[S,heads"),
    ],
)
def test_what_does_not_fit_is_refused(at: int, change: Any, said: str) -> None:
    given: list[Any] = list(arguments(9, 3, 16, 2, 16, 32, 0))
    given[at] = change(given[at])
    with pytest.raises(RuntimeError, match=said):
        latent_attention(*given)


def test_strides_are_read_as_they_are() -> None:
    given: list[Any] = list(arguments(9, 3, 16, 2, 16, 32, 0))
    want = latent_attention(*given)
    for at in range(5):
        changed = list(given)
        changed[at] = given[at].transpose(0, 1).contiguous().transpose(0, 1)
        assert not changed[at].is_contiguous()
        assert torch.equal(latent_attention(*changed), want)
