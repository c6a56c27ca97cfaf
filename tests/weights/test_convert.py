"""A checkpoint as its author left it, end to end: load, caption, convert, load again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flamvid
from flamvid.errors import InputError, WeightsError
from flamvid.models.contrastive import ContrastiveConfig, DualHead
from flamvid.models.flamingo import Flamingo
from flamvid.weights.convert import convert
from flamvid.weights.embed import load_embedder, save_head
from flamvid.weights.load import load_model
from flamvid.weights.source import source_config
from tests.conftest import SHARED
from tests.tiny import make_tokenizer
from tests.weights.reference import LLAMA, write_folder
from tests.weights.released import built, same, words
from tests.weights.test_idefics import theirs as idefics
from tests.weights.test_parity import aliased, llama


def test_prompts_are_as_it_was_trained(released: Path) -> None:
    prompts = load_model(str(released / "tiny.toml")).prompts
    decode = prompts.tokenizer.decode
    assert decode(prompts.caption()) == "<bos><image>Output:"
    asked = "<bos><image>Question:what? Short answer:"
    assert decode(prompts.question("what?")) == asked
    with pytest.raises(InputError, match="special tokens can't be part of a text"):
        prompts.question("what <image>?")


def test_a_converted_model_says_the_same(released: Path, picture: Path, tmp_path: Path) -> None:
    said = words(flamvid.load(released / "tiny.toml"), picture)
    assert convert(str(released / "tiny.toml"), tmp_path / "ours") == tmp_path / "ours"
    files = {file.name for file in (tmp_path / "ours").iterdir()}
    assert {"model.safetensors", "flamvid.toml", "tokenizer.json"} <= files
    captioner = flamvid.load(tmp_path / "ours")
    assert words(captioner, picture) == said
    assert captioner.model.config.licence == "MIT"
    assert captioner.name == "tiny"
    with pytest.raises(InputError, match="exists and is no empty folder"):
        convert(str(released / "tiny.toml"), tmp_path / "ours")


def test_our_own_model_keeps_its_vocabulary(tiny: Path, tmp_path: Path) -> None:
    before = load_model(str(tiny))
    vocabulary = torch.tensor([3, 7, 40])
    about = {"lm": "x", "tokens": {"bos": "<bos>", "media": "<media>", "end": "<end>"}}
    about |= {"vision": {"size": 64}}
    before.flamingo.save_pretrained(tmp_path, about=about, vocabulary=vocabulary)
    before.prompts.tokenizer.save_pretrained(tmp_path)
    after = load_model(str(tmp_path))
    assert after.head is not None
    assert after.head.ids.tolist() == [3, 7, 40]
    assert same(before.flamingo, after.flamingo)


def test_a_converted_model_can_be_searched_with_as_before(tiny: Path, tmp_path: Path) -> None:
    head = DualHead(ContrastiveConfig(features=256, states=32, width=8))
    save_head(tiny.parent / "head.safetensors", head)
    named = tmp_path / "named.toml"
    named.write_text(f'contrastive = "{tiny.parent}/head.safetensors"\n' + tiny.read_text())
    named.write_text(named.read_text().replace('"tiny.safe', f'"{tiny.parent}/tiny.safe'))
    convert(str(named), tmp_path / "ours")
    before, after = (load_embedder(load_model(str(at))) for at in (named, tmp_path / "ours"))
    assert before is not None
    assert after is not None
    assert torch.equal(before.text(["a red wall"]), after.text(["a red wall"]))


def test_a_bare_checkpoint_by_the_preset_it_is_like(released: Path, tmp_path: Path) -> None:
    file = str(shutil.copy(released / "checkpoint.safetensors", tmp_path / "bare.safetensors"))
    with pytest.raises(
        InputError, match=r"whose model it is; say so, as in .* --like openflamingo-3b$"
    ):
        source_config(file)
    lm, clip = str(released / "lm"), str(released / "clip")
    # the preset's MPT has no BOS, and its tokenizer gives the tokens their ids
    convert(file, tmp_path / "ours", like="openflamingo-3b", lm=lm, clip=clip, dtype="bf16")
    model = load_model(str(tmp_path / "ours"))
    assert model.dtype == torch.bfloat16
    assert model.config.vision.resize == "crop"
    assert model.flamingo.resampler.config.width == 24
    with pytest.raises(InputError, match="stored as fp32, bf16 or fp16"):
        convert(file, tmp_path / "x", like="openflamingo-3b", lm=lm, clip=clip, dtype="int8")


@pytest.mark.needs_shared
def test_a_model_without_a_tokenizer_converts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("neox", "mpt", "mosaic", "idefics"):
        source = SHARED / "parity" / name / ("checkpoint" if name == "idefics" else "")
        convert(str(source), tmp_path / name)
        [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("flamvid")]
        assert "holds no tokenizer.json" in line
        assert same(Flamingo.from_pretrained(tmp_path / name), built(source))
        with pytest.raises(WeightsError, match=r"holds no tokenizer\.json"):
            flamvid.load(tmp_path / name)
    broken = shutil.copytree(SHARED / "parity" / "neox", tmp_path / "broken")
    (broken / "checkpoint.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="is damaged"):
        convert(str(broken), tmp_path / "none")
    assert "flamvid" not in capsys.readouterr().err  # its one line is that of the error


def test_an_idefics_folder_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    idefics("vector").save_pretrained(tmp_path / "theirs")
    tokenizer = make_tokenizer()
    added = ["<s>", "</s>", "<image>", "<fake_token_around_image>"]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert load_model(str(tmp_path / "theirs"), dtype="fp32").config.format == "idefics"
    convert(str(tmp_path / "theirs"), tmp_path / "ours", dtype="fp32")
    model = load_model(str(tmp_path / "ours"))
    around, image = tokenizer.convert_tokens_to_ids(["<fake_token_around_image>", "<image>"])
    assert model.prompts.caption()[1:4] == [around, image, around]
    assert same(model.flamingo, load_model(str(tmp_path / "ours"), dtype="fp32").flamingo)
    assert model.flamingo.vision.first == 0


def test_a_checkpoint_of_aliases_alone_converts(tmp_path: Path) -> None:
    write_folder(tmp_path, llama(), *LLAMA, every=2, rename=aliased)
    convert(str(tmp_path), tmp_path / "ours")
    assert same(Flamingo.from_pretrained(tmp_path / "ours"), built(tmp_path))
    tensors = load_file(tmp_path / "checkpoint.safetensors")
    scalars = {n: torch.ones(()) if n.endswith("to_out.weight") else t for n, t in tensors.items()}
    save_file(scalars, tmp_path / "checkpoint.safetensors")
    with pytest.raises(WeightsError, match=r"to_out\.weight has shape \(\), the model wants"):
        convert(str(tmp_path), tmp_path / "none")
