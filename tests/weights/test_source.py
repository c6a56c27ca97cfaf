"""What a source is: told by its folder, its shapes, its repository's name, or by a preset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flamvid
from flamvid.api import Captioner
from flamvid.errors import FlamvidError, InputError
from flamvid.models.build import read_model_config
from flamvid.weights.load import load_model
from flamvid.weights.source import source_config
from tests.weights.released import words


def test_a_folder_as_its_author_left_it_captions(released: Path, picture: Path) -> None:
    wanted = words(flamvid.load(released / "tiny.toml"), picture)
    for source in (released, released / "checkpoint.safetensors"):
        config = source_config(str(source))
        assert (config.format, config.vision.size) == ("open_flamingo", 28)
        assert not config.tells_sizes
    # but for <bos>, which its tokenizer has under another name than Llama's
    ours = flamvid.load(released)
    assert ours.model.prompts.bos_id is None
    prompts = replace(ours.model.prompts, bos_id=ours.model.prompts.tokenizer.vocab["<bos>"])
    again = Captioner(replace(ours.model, prompts=prompts))
    assert words(again, picture) == wanted


@pytest.mark.parametrize(
    ("layers", "width", "found"),
    [
        ("model.layers", 4096, "openflamingo-9b-deprecated"),
        ("transformer.blocks", 4096, "openflamingo-9b"),
        ("transformer.blocks", 2048, "may be openflamingo-3b or openflamingo-3b-langinstruct;"),
        ("gpt_neox.layers", 2560, "may be openflamingo-4b or openflamingo-4b-langinstruct;"),
        ("gpt_neox.layers", 999, "whose model it is; say so"),
    ],
)
def test_a_bare_checkpoint_is_known_by_its_shapes(
    layers: str, width: int, found: str, tmp_path: Path
) -> None:
    name = f"module.lang_encoder.{layers}.0.gated_cross_attn_layer.attn.to_out.weight"
    torch.save({name: torch.zeros(width, 1)}, tmp_path / "checkpoint.pt")
    if found.startswith("openflamingo"):
        assert source_config(str(tmp_path)).lm == read_model_config(found).lm
        return
    with pytest.raises(InputError, match=found):
        source_config(str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "preset"),
    [
        ("OpenFlamingo-3B-vitl-mpt1b-langinstruct", "openflamingo-3b-langinstruct"),
        ("models--o--OpenFlamingo-4B-vitl-rpj3b/snapshots/0a1b", "openflamingo-4b"),
    ],
)
def test_the_name_of_its_repository_says_what_it_is(
    folder: str, preset: str, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert source_config(str(tmp_path / folder)).lm == read_model_config(preset).lm


def test_repositories_of_presets_are_those_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamvid.weights.hub.resolve", lambda name: pytest.fail(f"fetched {name}"))
    for repository, preset in (
        ("openflamingo/OpenFlamingo-3B-vitl-mpt1b", "openflamingo-3b"),
        ("HuggingFaceM4/idefics-9b-instruct", "idefics-9b-instruct"),
        ("luodian/OTTER-Video-LLaMA7B-DenseCaption", "otter-video"),
    ):
        assert source_config(repository) == read_model_config(preset)


def test_presets_offline_say_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path))
    for name in ("openflamingo-3b", "otter-video", "idefics-9b"):
        with pytest.raises(FlamvidError, match=re.escape("or give a local folder")) as raised:
            load_model(name)
        assert "\n" not in str(raised.value)
