"""A checkpoint as its author left it, end to end: load, caption, convert, load again."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import flamvid
from flamvid.api import Captioner
from flamvid.config import read_toml, to_toml
from flamvid.errors import ConfigError, FlamvidError, InputError, OfflineError, WeightsError
from flamvid.models.build import read_model_config
from flamvid.models.contrastive import ContrastiveConfig, DualHead
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import int8_on_load
from flamvid.models.int8 import int8_of, make_int8
from flamvid.models.llama import Llama
from flamvid.models.pretrained import _tensors
from flamvid.weights.convert import convert
from flamvid.weights.embed import load_embedder, save_head
from flamvid.weights.formats import build
from flamvid.weights.load import LoadedModel, load_model
from flamvid.weights.source import source_config
from tests.conftest import SHARED
from tests.tiny import make_tokenizer
from tests.weights.reference import write_folder
from tests.weights.test_idefics import theirs as idefics
from tests.weights.test_parity import LLAMA, aliased, llama

TOML = """
format = "open_flamingo"
lm = "{0}/lm"
adapter = "checkpoint.safetensors"
licence = "MIT"
frames = 1

[tokens]
bos = "<bos>"
media = "<image>"
end = "<|endofchunk|>"
added = ["<|endofchunk|>", "<image>"]

[prompt]
caption = "{{media}}Output:"
question = "{{media}}Question:{{question}} Short answer:"

[vision]
encoder = "clip:{0}/clip"
size = 28
resize = "crop"

[resampler]
features = 24
width = 24
frames = 0
project = false
activation = "gelu"

[xattn]
activation = "gelu"
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny OpenFlamingo with a tokenizer, and its TOML."""
    folder = tmp_path_factory.mktemp("released")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=2,
        vocab_size=len(tokenizer) + 2,
    )
    write_folder(folder, LlamaForCausalLM(config), *LLAMA, every=2)
    tokenizer.save_pretrained(folder / "lm")
    (folder / "tiny.toml").write_text(TOML.format(folder))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def words(captioner: Any, picture: Path) -> tuple[str, str]:
    [caption] = captioner.caption(picture, max_tokens=6)
    return caption.text, captioner.ask(picture, "what?", max_tokens=6).text


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


def same(one: Flamingo, other: Flamingo) -> bool:
    """Whether all tensors agree, by the names under which they are saved."""
    mine, theirs = (dict(_tensors(model)) for model in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in mine.items())


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


def built(source: Path) -> Flamingo:
    return build(source_config(str(source)), torch.float32, torch.device("cpu"))[0]


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


def test_save_and_load_as_hugging_face_users_do(released: Path, tmp_path: Path) -> None:
    model = load_model(str(released / "tiny.toml")).flamingo
    model.save_pretrained(tmp_path)
    again = flamvid.Flamingo.from_pretrained(tmp_path)
    assert same(model, again)
    assert not again.training
    # A plain Llama is ours from then on, and says what transformers' does.
    assert isinstance(again.lm.lm, Llama)
    hosted = Flamingo.from_pretrained(tmp_path, own=False)
    assert isinstance(hosted.lm.lm, LlamaForCausalLM)
    ids = torch.tensor([[1, 5, 9, 30, 31], [2, 7, 7, 60, 4]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    with torch.no_grad():
        media = model.read(torch.randn(2, 1, 5, 24), torch.zeros(2, 5, dtype=torch.int32))
        wanted, ours, theirs = (
            one.lm.head(one.lm(ids, media, mask))[mask == 1] for one in (model, again, hosted)
        )
    assert torch.equal(theirs, wanted)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)
    half = Flamingo.from_pretrained(tmp_path, dtype="float16")
    assert half.lm.head.weight.dtype == torch.float16
    table = read_toml(tmp_path / "flamvid.toml")
    assert table["lm_config"]["model_type"] == "llama"


def test_what_is_wrong_with_a_saved_model(released: Path, tmp_path: Path) -> None:
    built(released / "tiny.toml").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="lacks tokens"):
        flamvid.load(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="missing or damaged") as raised:
        Flamingo.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)
    weights.write_bytes(whole)
    toml = tmp_path / "flamvid.toml"
    toml.write_text(toml.read_text().replace("latents = 5", "latents = 6"))
    with pytest.raises(WeightsError, match=r"size mismatch for latents"):
        Flamingo.from_pretrained(tmp_path)
    toml.write_text('format = "flamvid"')
    with pytest.raises(ConfigError, match="not written by save_pretrained"):
        Flamingo.from_pretrained(tmp_path)


def test_the_hub_without_a_connection(
    released: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(OfflineError, match="'no/model' is no folder, and can't be fetched"):
        Flamingo.from_pretrained("no/model", local_files_only=True, cache_dir=tmp_path)

    def unreachable(*_: Any, **__: Any) -> None:
        error = HfHubHTTPError.__new__(HfHubHTTPError)
        Exception.__init__(error, "Name or service not known\nmore")
        raise error

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    model: LoadedModel = load_model(str(released / "tiny.toml"))
    with pytest.raises(OfflineError, match=r"can't push to me/mine .*or use save_pretrained$"):
        model.flamingo.push_to_hub("me/mine")


def test_push_uploads_what_save_writes(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    seen: list[set[str]] = []

    def upload(self: HfApi, *, repo_id: str, folder_path: str, **said: Any) -> str:
        assert said["revision"] == "main"
        seen.append({file.name for file in Path(folder_path).iterdir()})
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = load_model(str(released / "tiny.toml")).flamingo
    assert model.push_to_hub("me/mine", revision="main") == "https://hub/me/mine"
    [files] = seen
    assert {"model.safetensors", "flamvid.toml", "tokenizer.json"} <= files


def test_a_folder_of_a_repository(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(released / "tiny.toml").save_pretrained(tmp_path / "small" / "first")
    asked: list[str] = []

    def snapshot(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    Flamingo.from_pretrained("me/mine", subfolder="small/first", local_files_only=True)
    assert "small/first/model*.safetensors" in asked


def test_a_checkpoint_of_aliases_alone_converts(tmp_path: Path) -> None:
    write_folder(tmp_path, llama(), *LLAMA, every=2, rename=aliased)
    convert(str(tmp_path), tmp_path / "ours")
    assert same(Flamingo.from_pretrained(tmp_path / "ours"), built(tmp_path))
    tensors = load_file(tmp_path / "checkpoint.safetensors")
    scalars = {n: torch.ones(()) if n.endswith("to_out.weight") else t for n, t in tensors.items()}
    save_file(scalars, tmp_path / "checkpoint.safetensors")
    with pytest.raises(WeightsError, match=r"to_out\.weight has shape \(\), the model wants"):
        convert(str(tmp_path), tmp_path / "none")


def test_what_was_loaded_is_saved_with_all_that_belongs_to_it(
    released: Path, picture: Path, tmp_path: Path
) -> None:
    first = flamvid.load(released / "tiny.toml")
    said, vocabulary = words(first, picture), torch.arange(5, 40)
    first.model.flamingo.save_pretrained(tmp_path / "1")
    assert words(flamvid.load(tmp_path / "1"), picture) == said
    # and through a folder more, in shards
    Flamingo.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2", max_shard_size="99KB")
    assert len(list((tmp_path / "2").glob("model-*.safetensors"))) > 1
    again = flamvid.load(tmp_path / "2")
    assert words(again, picture) == said
    assert again.model.config.licence == "MIT"
    assert again.model.config.prompt == first.model.config.prompt
    # over what lay there before, and over itself
    Flamingo.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "1")
    assert words(flamvid.load(tmp_path / "1"), picture) == said
    again.model.flamingo.save_pretrained(tmp_path / "2", vocabulary=vocabulary)
    assert {file.name for file in (tmp_path / "2").glob("model*")} == {"model.safetensors"}
    Flamingo.from_pretrained(tmp_path / "2").save_pretrained(tmp_path / "3")
    head = flamvid.load(tmp_path / "3").model.head
    assert head is not None
    assert torch.equal(head.ids, vocabulary)


def test_a_saved_llama_becomes_int8_as_it_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tiny).save_pretrained(tmp_path)
    wide: list[weakref.ref[torch.Tensor]] = []

    def spy(layer: torch.nn.Linear) -> torch.nn.Module | None:
        # at most what one decoder layer has, which is read as a whole
        assert sum(ref() is not None for ref in wide) <= 4
        wide.append(weakref.ref(layer.weight))
        return int8_of(layer)

    with int8_on_load(spy):
        model = Flamingo.from_pretrained(tmp_path)
    wanted = Flamingo.from_pretrained(tmp_path)
    assert isinstance(model.lm.lm, Llama)
    assert len(wide) == 4 * len(model.lm.lm.model.layers) > 4
    for one in (model, wanted):
        make_int8(one.lm.lm)
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(model.lm(ids), wanted.lm(ids))


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtypes_as_hugging_face_users_write_them(
    dtype: str | torch.dtype, released: Path, tmp_path: Path
) -> None:
    built(released / "tiny.toml").save_pretrained(tmp_path)
    for model in (
        Flamingo.from_pretrained(tmp_path, dtype=dtype),
        Flamingo.from_pretrained(tmp_path, torch_dtype=dtype),
    ):
        assert model.lm.head.weight.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    auto = Flamingo.from_pretrained(tmp_path, torch_dtype="auto", revision="main")
    assert auto.lm.head.weight.dtype == torch.bfloat16
    for keywords in ({"low_cpu_mem_usage": True}, {"use_safetensors": True}, {"subfolder": "x"}):
        named = tmp_path.parent if "subfolder" in keywords else tmp_path
        keywords |= {"subfolder": tmp_path.name} if "subfolder" in keywords else {}
        assert same(Flamingo.from_pretrained(named, **keywords), auto)
    for keywords, complaint in (
        ({"use_safetensors": False}, "Flamingos are saved as safetensors only"),
        ({"torch_dtyp": "auto"}, "from_pretrained has no torch_dtyp; it takes dtype, device,"),
        ({"dtype": "int4"}, "dtype is 'int4'; must be auto or one of float32, fp32"),
    ):
        with pytest.raises(FlamvidError, match=complaint) as raised:
            Flamingo.from_pretrained(tmp_path, **keywords)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(InputError, match="max_shard_size is 'big'; must be bytes, or a text"):
        model.save_pretrained(tmp_path, max_shard_size="big")


def test_presets_offline_say_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path))
    for name in ("openflamingo-3b", "otter-video", "idefics-9b"):
        with pytest.raises(FlamvidError, match=re.escape("or give a local folder")) as raised:
            load_model(name)
        assert "\n" not in str(raised.value)


def test_toml_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = {"a": 1, "b": [1.5, "x"], "c d": {"d": True, "e": {"f": 'q"\n'}}, "g": [{"h": 1}]}
    (tmp_path / "x.toml").write_text(to_toml({**table, "none": None}))
    assert read_toml(tmp_path / "x.toml") == table
    with pytest.raises(TypeError, match="set has no form"):
        to_toml({"a": {1}})
    assert json.loads(json.dumps(table)) == table
