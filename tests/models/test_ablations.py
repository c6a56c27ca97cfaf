"""The paper's ablations and its language model, tiny: each switch runs, learns and decodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError
from flamvid.models.build import assemble, read_model_config
from flamvid.models.chinchilla import ChinchillaConfig, ChinchillaForCausalLM
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.relative import RelativeBlock, sinusoids
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.vision import TimmEncoder, VisionConfig
from flamvid.train.optimizer import make_optimizer
from flamvid.train.recipe import CaptionStage
from flamvid.weights.load import load_config, load_model
from tests.models.test_flamingo import HOSTS, MEDIA, VOCAB, FakeVision, example
from tests.tiny import make_model

RESAMPLER = ResamplerConfig(
    features=24, width=16, heads=2, head_width=8, latents=3, frames=4, out_width=32
)
XATTN = XattnConfig(heads=2, head_width=8)

# Each ablation that is another architecture, by what it changes.
CHANGES = {
    "as the paper": (RESAMPLER, XATTN),
    "no tanh gating": (RESAMPLER, replace(XATTN, gated=False)),
    "vanilla": (RESAMPLER, replace(XATTN, dense=False)),
    "neither": (RESAMPLER, replace(XATTN, gated=False, dense=False)),
    "grafting": (RESAMPLER, replace(XATTN, grafted=2)),
    "single": (RESAMPLER, replace(XATTN, first=2, every=4)),
    "mlp": (replace(RESAMPLER, kind="mlp"), XATTN),
    "transformer": (replace(RESAMPLER, kind="transformer"), XATTN),
}


def chinchilla() -> ChinchillaForCausalLM:
    config = ChinchillaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=8,
        vocab_size=VOCAB,
    )
    return ChinchillaForCausalLM(config)


def ablation(name: str, host: str = "chinchilla", lm_state: str = "frozen") -> Flamingo:
    torch.manual_seed(0)
    lm = chinchilla() if host == "chinchilla" else HOSTS[host]()
    model = assemble(FakeVision(), lm, *CHANGES[name], lm_state)  # type: ignore[arg-type]
    for key, parameter in model.trained():
        if key.endswith("gate"):
            nn.init.constant_(parameter, 0.5)
    return model.eval()


@pytest.mark.parametrize("name", CHANGES)
def test_it_reads_its_media_and_all_its_parameters_learn(name: str) -> None:
    model = ablation(name)
    features, ids, index = example()
    logits = model(features, ids, index)
    assert logits.shape == (2, 10, VOCAB)
    other = model(features.flip(1), ids, index)
    assert not torch.allclose(logits, other, atol=1e-5)
    torch.testing.assert_close(logits[0, :2], other[0, :2])  # before the first media, none is seen
    model.train()
    model(features, ids, index).square().sum().backward()
    assert [key for key, p in model.trained() if p.grad is None] == []
    assert not any(p.requires_grad for p in model.lm.lm.parameters())


@pytest.mark.parametrize("host", ["chinchilla", "llama"])
@pytest.mark.parametrize("name", ["as the paper", "grafting"])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_text(name: str, host: str) -> None:
    model = ablation(name, host)
    features, ids, index = example()
    whole = model(features, ids, index)
    latents, cache = model.resample(features), model.lm.new_cache()
    parts = [
        model.lm.head(model.lm(ids[:, a:b], model.read(latents, index[:, a:b]), None, cache))
        for a, b in ((0, 4), (4, 5), (5, 8))
    ]
    assert cache.get_seq_length() == 8
    rows = torch.tensor([1, 0])  # as beams change places
    cache.reorder_cache(rows)
    media = model.read(latents[rows], index[rows, 8:])
    last = model.lm.head(model.lm(ids[rows, 8:], media, None, cache))
    torch.testing.assert_close(torch.cat([*parts, last[rows]], 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["as the paper", "grafting"])
@torch.no_grad()
def test_left_padding_changes_nothing(name: str) -> None:
    model = ablation(name)
    features, ids, index = example(1)
    padded = torch.cat([torch.full((1, 3), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones(1, 10)], dim=1).long()
    before = torch.cat([index.new_full((1, 3), int(index[0, 0])), index], dim=1)
    assert (ids == MEDIA).any()
    batch = model(features, padded, before, mask)
    whole = model(features, ids, index)
    torch.testing.assert_close(batch[:, 3:], whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_grafted_text_without_media_is_what_media_unseen_give() -> None:
    model = ablation("grafting")
    features, ids, index = example()
    alone = model.lm.head(model.lm(ids))
    torch.testing.assert_close(model(features, ids, index)[0, :2], alone[0, :2])


@torch.no_grad()
def test_relative_positions_are_transformer_xls_formula() -> None:
    torch.manual_seed(0)
    block = RelativeBlock(width=8, heads=2, head_width=4, ffw_width=16)
    nn.init.normal_(block.content_bias)
    nn.init.normal_(block.distance_bias)
    x = torch.randn(1, 5, 8)
    q, k, v = (y[0].view(5, 2, 4) for y in block.to_qkv(block.norm(x)).chunk(3, -1))
    r = block.to_distance(sinusoids(5, 8, x.device)).view(5, 2, 4)
    u, w = block.content_bias[:, 0], block.distance_bias[:, 0]
    out = torch.zeros(5, 2, 4)
    for i in range(5):
        for h in range(2):
            scores = [(q[i, h] + u[h]) @ k[j, h] + (q[i, h] + w[h]) @ r[i - j, h] for j in range(5)]
            weights = (torch.stack(scores[: i + 1]) / 2).softmax(0)
            out[i, h] = weights @ v[: i + 1, h]
    y = x + block.to_out(out.flatten(1))[None]
    unseen = torch.ones(5, 5).triu(1).bool()[None, None]
    torch.testing.assert_close(block(x, unseen), y + block.ffw(y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["perceiver", "mlp", "transformer"])
@torch.no_grad()
def test_a_short_clip_in_a_padded_batch_is_as_alone(kind: str) -> None:
    resampler = PerceiverResampler(replace(RESAMPLER, kind=kind)).eval()
    long, short = torch.randn(1, 4, 9, 24), torch.randn(1, 2, 9, 24)
    padded = torch.cat([long, nn.functional.pad(short, (0, 0, 0, 0, 0, 2))])
    both: Tensor = resampler(padded, torch.tensor([4, 2]))
    assert both.shape == (2, 3, 32)
    torch.testing.assert_close(both[1:], resampler(short), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[:1], resampler(long), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lm_state", ["unfrozen", "scratch"])
def test_the_language_model_learns_where_it_is_not_frozen(lm_state: str) -> None:
    model = ablation("as the paper", lm_state=lm_state).train()
    features, ids, index = example()
    model(features, ids, index).square().sum().backward()
    learns = dict(model.trained())
    assert sum(key.startswith("lm.") for key in learns) == len(list(model.lm.lm.parameters()))
    assert all(p.grad is not None for p in learns.values())
    assert model.lm.lm.training
    assert model.lm.head_of(torch.arange(3)).weight.requires_grad


def test_a_saved_ablation_comes_back(tmp_path: Path) -> None:
    model = ablation("grafting")
    model.vision = TimmEncoder("resnet10t", classifier=False)
    model.save_pretrained(tmp_path / "saved")
    again = Flamingo.from_pretrained(tmp_path / "saved")
    features, ids, index = example()
    torch.testing.assert_close(again.eval()(features, ids, index), model(features, ids, index))


def test_an_encoder_without_classifier_takes_the_weights_of_one_with_it() -> None:
    whole, bare = TimmEncoder("resnet10t"), TimmEncoder("resnet10t", classifier=False)
    bare.load(whole.model.state_dict())
    pictures = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(bare.eval()(pictures), whole.eval()(pictures))


def test_wrong_switches_are_one_line() -> None:
    with pytest.raises(ConfigError, match="must be perceiver, transformer or mlp"):
        replace(RESAMPLER, kind="lstm")
    with pytest.raises(ConfigError, match="of style flamingo, not idefics"):
        XattnConfig(style="idefics", ffw_width=8, gated=False)
    with pytest.raises(ConfigError, match="grafted is -1"):
        XattnConfig(grafted=-1)
    with pytest.raises(ConfigError, match="lm_state is 'thawed'"):
        replace(read_model_config("flamingo-3b"), lm_state="thawed")
    with pytest.raises(ConfigError, match="needs a classifier"):
        VisionConfig(encoder="timm:x", labels=3, classifier=False)


def test_a_model_of_the_paper_has_no_weights_to_load() -> None:
    with pytest.raises(ConfigError, match=r"never released; .* copy flamingo-3b\.toml"):
        load_model("flamingo-3b")


@pytest.mark.parametrize("lm_state", ["unfrozen", "scratch"])
def test_a_model_on_disk_is_thawed_or_begun_afresh(lm_state: str, tmp_path: Path) -> None:
    config = read_model_config(str(make_model(tmp_path)))
    begun = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": load_config(config).flamingo.lm.lm.config.vocab_size,
    }
    changed = replace(config, lm_state=lm_state, lm_config=begun, cpu_dtype="")
    model = load_config(changed, trained=False).flamingo
    frozen = load_config(config, trained=False).flamingo
    same = torch.equal(model.lm.head.weight, frozen.lm.head.weight)
    assert same == (lm_state == "unfrozen")
    stage = CaptionStage()
    slow = 0.1 * stage.learning_rate
    groups = [
        g for g in make_optimizer(model.trained(), stage.optim).param_groups if g["peak"] == slow
    ]
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(model.lm.lm.parameters()))
