"""save_pretrained, from_pretrained and push_to_hub, as users of Hugging Face know them."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import flamvid
from flamvid.config import read_toml
from flamvid.errors import ConfigError, FlamvidError, InputError, OfflineError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import int8_on_load
from flamvid.models.int8 import int8_of, make_int8
from flamvid.models.llama import Llama
from flamvid.weights.load import LoadedModel, load_model
from tests.weights.released import built, same, words


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
