"""What is wrong with an OpenFlamingo checkpoint is one clear line, and nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamvid.errors import WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.hosts import load_host
from flamvid.models.transformers_encoder import load_tower
from flamvid.weights.open_flamingo import build_open_flamingo, layout, open_flamingo_tensors
from flamvid.weights.tensors import open_tensors
from tests.weights.reference import LLAMA, MPT, NEOX, VOCAB, write_folder
from tests.weights.test_parity import llama, mpt, neox, opt, released

EMBEDDINGS = "lang_encoder.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_folder(tmp_path_factory.mktemp("llama"), llama(), *LLAMA, every=2)


def load(checkpoint: Path, parts: Path, lm: Path | None = None) -> Flamingo:
    tensors = open_flamingo_tensors(open_tensors(checkpoint))
    vision = load_tower("clip", parts / "clip", torch.float32)
    frozen = load_host(lm or parts / "lm", torch.float32)
    return build_open_flamingo(tensors, vision, frozen, layout(tensors, checkpoint), checkpoint)


def changed(folder: Path, to: Path, **changes: Tensor | None) -> Path:
    tensors: dict[str, Tensor | None] = {**load_file(folder / "checkpoint.safetensors"), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, to / "changed.safetensors")
    return to / "changed.safetensors"


BLOCK = "perceiver.layers.1.0.to_kv.weight"
QUERIES = "perceiver.layers.0.0.to_q.weight"
CROSSING = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn.to_q.weight"
FAR = "lang_encoder.model.layers.99999999.gated_cross_attn_layer.attn_gate"
FIRST = "lang_encoder.model.layers.1.gated_cross_attn_layer.attn_gate"
GATE = "lang_encoder.model.layers.3.gated_cross_attn_layer.ff_gate"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({GATE: None}, f"missing [{GATE}], unexpected []"),
        ({BLOCK: None}, f"missing [{BLOCK}], unexpected []"),
        ({"perceiver.more": torch.ones(3)}, "missing [], unexpected [perceiver.more]"),
        ({"perceiver.norm.weight": torch.ones(7)}, "has shape (7,), the model wants (24,)"),
        ({EMBEDDINGS: None}, f"lacks {EMBEDDINGS}, the embeddings of a LlamaForCausalLM"),
        ({"perceiver.latents": None}, "missing [perceiver.latents]"),
        ({FIRST: None}, f"missing [{FIRST}], unexpected []"),
        ({"perceiver.latents": torch.ones(2, 5, 24)}, "has shape (2, 5, 24); must be a matrix"),
        ({QUERIES: torch.tensor(1.0)}, f"{QUERIES} has shape (); must be a matrix"),
        ({QUERIES: torch.ones(70, 24)}, "a multiple of 64"),
        ({CROSSING: torch.tensor(1.0)}, f"{CROSSING} has shape (); must be a matrix"),
        ({EMBEDDINGS: torch.ones(9)}, "has shape (9,), the language model wants"),
        ({BLOCK: torch.ones(1024, 24).byte()}, f"{BLOCK} is uint8, weights are floats"),
        ({FAR: torch.ones(3)}, f"missing [], unexpected [{FAR}]"),
    ],
)
def test_tensors_that_do_not_fit(
    folder: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    file = changed(folder, tmp_path, **changes)
    with pytest.raises(WeightsError) as raised:
        load(file, folder)
    assert complaint in str(raised.value)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_head_of_a_neox_is_saved_with_its_embeddings(tmp_path: Path) -> None:
    write_folder(tmp_path, neox(), *NEOX, rename=released)
    file = changed(tmp_path, tmp_path, **{"lang_encoder.embed_out.weight": None})
    with pytest.raises(WeightsError, match=r"missing \[lang_encoder\.embed_out\.weight\]"):
        load(file, tmp_path)


def test_one_name_can_not_claim_layers_without_end(folder: Path, tmp_path: Path) -> None:
    file = changed(folder, tmp_path, **{"perceiver.layers.99999999.1.0.bias": torch.ones(24)})
    tensors = open_flamingo_tensors(open_tensors(file))
    assert layout(tensors, file)[0].depth == 3
    with pytest.raises(WeightsError, match=r"unexpected \[perceiver\.layers\.99999999\.1\.0\.bias"):
        load(file, folder)


def test_a_checkpoint_without_its_last_layers(folder: Path) -> None:
    """It looks like one of a smaller model, and is none where sizes are known."""
    file = folder / "checkpoint.safetensors"
    tensors = open_flamingo_tensors(open_tensors(file))
    depth = layout(tensors, file)[0].depth
    cut = {n: t for n, t in tensors.items() if f"perceiver.layers.{depth - 1}." not in n}
    with pytest.raises(WeightsError, match=rf"has {depth - 1} resampler layers .* has {depth};"):
        layout(cut, file, depth=depth, every=2)
    one = {n: t for n, t in tensors.items() if "layers.1.gated_cross_attn_layer." not in n}
    vision = load_tower("clip", folder / "clip", torch.float32)
    lm = load_host(folder / "lm", torch.float32)
    parts = layout(one, file, depth=depth, every=2)
    with pytest.raises(WeightsError, match=r"missing \[.*layers\.1\.gated_cross_attn_layer"):
        build_open_flamingo(one, vision, lm, parts, file)


def test_another_language_model(folder: Path, tmp_path: Path) -> None:
    file = folder / "checkpoint.safetensors"
    for i, (other, complaint) in enumerate(
        [(opt, "give the language model it was trained with"), (neox, "embeddings of a GPTNeoX")]
    ):
        other().save_pretrained(tmp_path / str(i))
        with pytest.raises(WeightsError, match=complaint) as raised:
            load(file, folder, tmp_path / str(i))
        assert "\n" not in str(raised.value)
    wide = llama()
    wide.config.hidden_size = 48
    type(wide)(wide.config).save_pretrained(tmp_path / "wide")
    with pytest.raises(WeightsError, match=rf"\({VOCAB}, 40\), the language model wants .*48\)"):
        load(file, folder, tmp_path / "wide")
    shallow = llama()
    shallow.config.num_hidden_layers = 4
    type(shallow)(shallow.config).save_pretrained(tmp_path / "shallow")
    with pytest.raises(WeightsError, match=r"unexpected \[lang_encoder\.model\.layers\.5\."):
        load(file, folder, tmp_path / "shallow")


@torch.no_grad()
def test_masks_by_name_are_ignored(folder: Path, tmp_path: Path) -> None:
    masks = {
        "lang_encoder.gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8),
        "lang_encoder.model.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "lang_encoder.model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "lang_encoder.transformer.attn_bias": torch.ones(1, 1, 8, 8),
        "vision_encoder.transformer.resblocks.0.ln_1.weight": torch.ones(8),
    }
    model = load(changed(folder, tmp_path, **masks), folder)
    plain = load(folder / "checkpoint.safetensors", folder)
    for (name, ours), (_, theirs) in zip(model.trained(), plain.trained(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("rows", [VOCAB + 3, VOCAB - 5])
def test_the_language_model_gets_as_many_tokens_as_the_checkpoint(
    tmp_path: Path, rows: int
) -> None:
    torch.manual_seed(0)
    write_folder(tmp_path / "mpt", mpt(), *MPT)
    table = torch.randn(rows, 42)
    file = changed(tmp_path / "mpt", tmp_path, **{MPT[1][0]: table})
    lm = load(file, tmp_path / "mpt").lm.lm
    assert torch.equal(lm.get_input_embeddings().weight, table)
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    assert lm.config.vocab_size == rows


@pytest.mark.parametrize("rows", [VOCAB + 9, VOCAB - 20])
def test_a_language_model_of_another_vocabulary(tmp_path: Path, rows: int) -> None:
    write_folder(tmp_path, mpt(), *MPT)
    file = changed(tmp_path, tmp_path, **{MPT[1][0]: torch.randn(rows, 42)})
    with pytest.raises(WeightsError, match=rf"has {rows} tokens, the language model has {VOCAB};"):
        load(file, tmp_path)


def test_a_head_that_was_not_trained(folder: Path, tmp_path: Path) -> None:
    """As in the LLaMA release: three tokens more, and no head for them."""
    model = load(changed(folder, tmp_path, **{EMBEDDINGS: torch.randn(VOCAB + 3, 40)}), folder)
    head = model.lm.head.weight
    assert head.shape == (VOCAB + 3, 40)
    assert not head[VOCAB:].any()
    assert torch.equal(head[:VOCAB], load_host(folder / "lm", torch.float32).lm_head.weight)
    with pytest.raises(WeightsError, match="give the one it was trained with"):
        load(changed(folder, tmp_path, **{EMBEDDINGS: torch.randn(VOCAB - 9, 40)}), folder)


def test_a_head_that_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_folder(tmp_path, neox(), *NEOX, rename=released)
    table, head = torch.randn(2, VOCAB - 4, 36)
    names = map(released, NEOX[1])
    lm = load(
        changed(tmp_path, tmp_path, **dict(zip(names, (table, head), strict=True))), tmp_path
    ).lm.lm
    assert torch.equal(lm.get_output_embeddings().weight, head)
    assert torch.equal(lm.get_input_embeddings().weight, table)


def test_weights_come_in_the_wanted_dtype(folder: Path) -> None:
    file = folder / "checkpoint.safetensors"
    tensors = open_flamingo_tensors(open_tensors(file))
    vision = load_tower("clip", folder / "clip", torch.bfloat16)
    lm = load_host(folder / "lm", torch.bfloat16)
    model = build_open_flamingo(tensors, vision, lm, layout(tensors, file), file)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.is_meta for p in model.parameters())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch bombed",)


def test_a_bomb_is_not_executed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"perceiver.latents": torch.ones(2), "x": Bomb()}, "bomb.pt")
    torch.save(Bomb(), "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "lm" / "config.json").read_text())
    with pytest.raises(WeightsError, match="more than tensors, and nothing of it was executed"):
        load(tmp_path / "bomb.pt", folder)
    with pytest.raises(WeightsError, match="nothing of it was executed") as raised:
        load_host(tmp_path, torch.float32)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "bombed").exists()


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    """A config.json that points to code beside it, as MPT's do."""
    mpt().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    auto = '{"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},'
    (tmp_path / "config.json").write_text(config.replace("{", auto, 1))
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    assert type(load_host(tmp_path, torch.float32)).__name__ == "MptForCausalLM"
