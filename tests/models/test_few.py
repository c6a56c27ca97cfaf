"""A decoding step by the operations that do it at once writes what the modules write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from flamvid.errors import InputError
from flamvid.generate.engine import Generated, GenerationConfig, search
from flamvid.models import few, gated_xattn, llama, mosaic
from flamvid.models.cache import KeyValueCache
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import GatedCrossAttention, XattnConfig
from flamvid.models.int8 import make_int8
from flamvid.models.llama import Llama, LlamaConfig
from flamvid.models.lm import MediaContext
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import implementation, media_index

pytestmark = pytest.mark.skipif(
    implementation("feed_few").name != "kernel", reason="flamvid._C is not there"
)

MEDIA, END = 5, 2
OPERATIONS = ("self_few", "cross_few", "feed_few")


class Vision(nn.Module):
    width = 8


def make_llama() -> Llama:
    return Llama(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            vocab_size=40,
            rope_theta=1e4,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )


def make_mosaic() -> MosaicForCausalLM:
    return MosaicForCausalLM(MosaicConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=40))


def make(host: str, xattn: XattnConfig | None = None) -> Flamingo:
    torch.manual_seed(0)
    lm: Any = make_mosaic() if host.startswith("mosaic") else make_llama()
    for parameter in lm.parameters():
        nn.init.normal_(parameter, std=0.3)
    sizes = ResamplerConfig(features=8, width=8, heads=1, head_width=8, latents=2)
    xattn = xattn or XattnConfig(heads=2, head_width=8)
    model = Flamingo(Vision(), PerceiverResampler(sizes), lm, xattn).eval()
    for name, parameter in model.lm.inserted.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.7)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5)
    if host.endswith("int8"):
        make_int8(lm.model.layers if isinstance(lm, Llama) else lm.transformer.blocks)
        make_int8(model.lm.inserted)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each operation was called."""
    found: Counter[str] = Counter()

    def counted(name: str, operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            found[name] += 1
            return operation(*args)

        return call

    for module in (few, gated_xattn, llama, mosaic):
        for name in OPERATIONS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return found


def by_modules(monkeypatch: pytest.MonkeyPatch, what: Callable[[], Any]) -> Any:
    """The same without these operations."""
    with monkeypatch.context() as patch:
        for module in (gated_xattn, llama, mosaic):
            patch.setattr(module, "few_rows", lambda _: False)
        return what()


def write(model: Flamingo, beams: int, rows: int) -> list[list[Generated]]:
    """What it writes to prompts of other lengths, padded on the left, with media and without."""
    dice = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 40, (rows, 7), generator=dice)
    ids[0, 1] = ids[0, 4] = MEDIA
    real = torch.ones_like(ids)
    if rows > 1:
        ids[1, :4], real[1, :4] = 0, 0
    latents = torch.randn(rows, 2, 2, 8, generator=dice)
    config = GenerationConfig(
        beams=beams, returns=beams, max_tokens=70, min_tokens=66, lookup=False
    )
    index = media_index(ids, MEDIA)
    return search(model, latents, ids, index, END, config, real if rows > 1 else None)


@pytest.mark.parametrize("host", ["llama", "mosaic", "llama int8", "mosaic int8"])
@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_next_tokens_of_a_text_are_read_together(
    host: str, rows: int, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    model = make(host)
    dice = torch.Generator().manual_seed(2)
    ids = torch.randint(6, 40, (rows, 21), generator=dice)
    ids[:, 1] = ids[:, 11] = MEDIA
    real = torch.ones_like(ids)
    real[-1, :3] = 0
    index = media_index(ids, MEDIA)
    layers = model.read(torch.randn(rows, 2, 2, 8, generator=dice), index).layers

    def read(parts: tuple[int, ...], last: bool = False, padded: bool = True) -> tuple[Tensor, Any]:
        cache, states, at = model.lm.new_cache(), [], 0
        for part in parts:
            some = slice(at, at := at + part)
            media = MediaContext(layers, index[:, some])
            mask = real[:, :at] if padded else None
            states.append(model.lm(ids[:, some], media, mask, cache, last=last))
        return torch.cat(states, 1), cache

    for padded in (True, False):
        want, held = by_modules(monkeypatch, lambda p=padded: read((21,), padded=p))
        seen = real.bool() if padded else torch.ones_like(real).bool()  # padding means nothing
        for parts in ((14, 4, 3), (4, 1, 1, 4, 4, 3, 4), (1,) * 21):
            calls.clear()
            found, cache = read(parts, padded=padded)
            torch.testing.assert_close(found[seen], want[seen], atol=1e-4, rtol=1e-4)
            assert calls["self_few"] == 2 * sum(part * rows <= 8 for part in parts)
            for one, other in ((cache._keys, held._keys), (cache._values, held._values)):
                for mine, theirs in zip(one, other, strict=True):
                    mine, theirs = (x[:, :, :21].transpose(1, 2)[seen] for x in (mine, theirs))
                    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
            ends = torch.tensor(parts).cumsum(0) - 1
            lasts, _ = read(parts, last=True, padded=padded)
            torch.testing.assert_close(lasts, found[:, ends], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("beams", "rows"), [(1, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("host", ["llama", "llama int8", "mosaic", "mosaic int8"])
def test_the_same_texts(
    host: str, beams: int, rows: int, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    model = make(host)
    found = write(model, beams, rows)
    steps = Counter(calls)
    wanted = by_modules(monkeypatch, lambda: write(model, beams, rows))
    assert calls == steps  # which the other way has none of
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.ids == other.ids
            assert one.logprob == pytest.approx(other.logprob, abs=2e-3)
    few_enough = beams * rows <= 8
    for name in OPERATIONS:
        assert (steps[name] >= 60 * 2) == few_enough


def layers_of(model: Flamingo) -> list[nn.Module]:
    """What a step of one layer is made of, the layer itself and its cross-attention too."""
    lm = model.lm.lm
    layer = (lm.model.layers if isinstance(lm, Llama) else lm.transformer.blocks)[0]
    names = ("to_kv", "norm_k")  # read once for all tokens
    xattn = [m for n, m in model.lm.inserted[0].named_modules() if n not in names]
    return [*layer.modules(), *xattn]


def steps(model: Flamingo, begin: int = 3) -> Tensor:
    """Hidden states of some tokens one by one, after a first few."""
    ids = torch.arange(6, 14).view(2, 4)
    index = torch.zeros(2, 4, dtype=torch.int32)
    gate = model.lm.inserted[0].attn_gate
    latents = torch.linspace(-1, 1, 2 * 2 * 8, dtype=gate.dtype).view(2, 1, 2, 8)
    with torch.no_grad():
        cache, media = model.lm.new_cache(), model.read(latents, index)
        parts = []
        for first, last in ((0, begin), *((i, i + 1) for i in range(begin, 4))):
            media = type(media)(media.layers, index[:, first:last])
            parts += [model.lm(ids[:, first:last], media, cache=cache)] if last > first else []
        return torch.cat(parts, 1)


@pytest.mark.parametrize("host", ["llama", "mosaic"])
def test_who_listens_to_a_part_hears_it(host: str) -> None:
    model = make(host)
    for layer in layers_of(model):
        for listen in (layer.register_forward_hook, layer.register_forward_pre_hook):
            heard: list[bool] = []
            handle = listen(lambda *_, heard=heard: heard.append(True))
            steps(model)
            handle.remove()
            assert len(heard) == 2, layer
    heard = []
    handle = register_module_forward_hook(lambda module, *_: heard.append(module))
    steps(model)
    handle.remove()
    for layer in layers_of(model):
        assert heard.count(layer) == 2, layer


class Silent(nn.Module):
    """In another's place, with all that it has."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(other.__dict__)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x * 0.5


class Louder(Tensor):
    """A tensor with a product of its own, as those that are quantised."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out * 2 if func is nn.functional.linear else out


def louder(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Louder), False)


def without_parameter(layer: nn.Module) -> None:
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight * 2


def with_bias(layer: nn.Module) -> None:
    layer.bias = nn.Parameter(torch.linspace(0, 1, layer.out_features))


def with_made_bias(layer: nn.Module) -> None:
    with_bias(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", Silent(nn.Identity()))


def new_weight(layer: nn.Module) -> None:
    layer.weight.data = layer.weight.data.t().contiguous().t() * 1.5


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": lambda layer: nn.init.ones_(
        parametrizations.weight_norm(layer).parametrizations.weight.original0
    ),
    "another type's weight": louder,
    "a weight that is no parameter": without_parameter,
    "a bias": with_bias,
    "a bias that is made": with_made_bias,
    "a weight the other way round": new_weight,
}


@pytest.mark.parametrize("host", ["llama", "mosaic"])
@pytest.mark.parametrize("change", CHANGES)
def test_linear_layers_that_are_not_plain(
    host: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = steps(make(host))
    linear = [i for i, m in enumerate(layers_of(make(host))) if isinstance(m, nn.Linear)]
    for at in linear:
        changed = make(host)
        CHANGES[change](layers_of(changed)[at])
        after = steps(changed)
        assert not torch.allclose(after, before, atol=1e-4)
        wanted = by_modules(monkeypatch, lambda changed=changed: steps(changed))
        torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_parts_that_are_replaced(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("mosaic")
    block = model.lm.lm.transformer.blocks[0]
    setattr(block, part, Silent(getattr(block, part)))
    torch.testing.assert_close(steps(model), by_modules(monkeypatch, lambda: steps(model)))


@pytest.mark.parametrize("wrong", [-2, 2])
def test_a_media_that_is_not_there_is_told_as_modules_tell_it(
    wrong: int, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    model = make("llama")
    [layer, *_] = [x for x in model.lm.inserted if isinstance(x, GatedCrossAttention)]
    x, index = torch.zeros(1, 1, 32), torch.tensor([[wrong]], dtype=torch.int32)
    with torch.no_grad():
        media = layer.read(torch.zeros(1, 2, 2, 8))

        def read() -> str:
            with pytest.raises(InputError, match="must be from -1") as error:
                layer(x, media, index)
            return str(error.value)

        assert read() == by_modules(monkeypatch, read)
    assert calls["cross_few"] == 1


@pytest.mark.parametrize("host", ["llama", "mosaic", "mosaic int8"])
def test_from_the_first_token_on(
    host: str, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    model = make(host)
    found = steps(model, begin=0)
    assert calls["self_few"] == 4 * 2
    wanted = by_modules(monkeypatch, lambda: steps(model))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_weights_are_read_anew_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    before = steps(model)
    torch.testing.assert_close(steps(model.half().float()), before, atol=0.1, rtol=0)
    for parameter in model.lm.parameters():
        parameter.data = parameter.data * 0.9
    after = steps(model)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, by_modules(monkeypatch, lambda: steps(model)))


@pytest.mark.parametrize("host", ["llama", "mosaic"])
def test_other_dtypes_and_gradients_go_by_modules(host: str, calls: Counter[str]) -> None:
    model = make(host)
    assert steps(model.bfloat16()).dtype == torch.bfloat16
    model.float()
    lm = model.lm
    cache = lm.new_cache()
    assert isinstance(cache, KeyValueCache)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    latents = torch.randn(2, 1, 2, 8)
    media = model.read(latents, torch.zeros(2, 1, dtype=torch.int32))
    lm(torch.tensor([[7], [8]]), media).sum().backward()
    assert all(p.grad is not None for p in lm.inserted.parameters())
    assert not calls
