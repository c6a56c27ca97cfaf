"""Files of tensors: mapped, whole, or one line about what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flamvid.errors import WeightsError
from flamvid.models.lm import load_causal_lm, load_plain_lm
from flamvid.models.transformers_encoder import load_tower
from flamvid.weights.foreign import listed, unwrap
from flamvid.weights.placement import int8_as_read
from flamvid.weights.tensors import open_tensors
from tests.conftest import SHARED
from tests.weights.test_parity import llama

HELD = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == HELD.keys() and all(torch.equal(found[n], t) for n, t in HELD.items())


@pytest.mark.parametrize("nest", [None, "model_state_dict", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, nest: str | None, zipped: bool) -> None:
    held = {nest: HELD, "epoch": 4} if nest else HELD
    torch.save(held, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert same(open_tensors(tmp_path / "x.pt"))


def test_folders(tmp_path: Path) -> None:
    save_file({"a.weight": HELD["a.weight"]}, tmp_path / "one.safetensors")
    assert open_tensors(tmp_path).keys() == {"a.weight"}
    torch.save({"b": HELD["b"]}, tmp_path / "two.bin")
    index = {"weight_map": {"a.weight": "one.safetensors", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same(open_tensors(tmp_path))
    save_file({"b": HELD["b"]}, tmp_path / "model.safetensors")
    assert open_tensors(tmp_path).keys() == {"b"}  # safetensors before anything else


@pytest.mark.parametrize(
    "lie", [{"rope_parameters": "x"}, {"num_attention_heads": 0}, {"hidden_size": "wide"}]
)
def test_a_plain_llama_with_a_configuration_of_other_types(
    tmp_path: Path, lie: dict[str, object]
) -> None:
    lm = llama()
    lm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "head_dim": None, **lie}))
    with pytest.raises(WeightsError) as raised:
        load_plain_lm(tmp_path, torch.float32)
    assert "\n" not in str(raised.value)


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    torch.save({"large": torch.zeros(1 << 22), "b": HELD["b"]}, tmp_path / "x.pt")
    before = resident()
    held = open_tensors(tmp_path / "x.pt")
    assert resident() - before < 8 << 20  # of 16 MB
    assert torch.equal(held["b"], HELD["b"])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 134\n"


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named_as_what_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(WeightsError, match=r"is a pointer of git-lfs.* git lfs pull in"):
        open_tensors(tmp_path / name)


@pytest.mark.parametrize("text", [b"<!DOCTYPE html>", b"\x89PNG\r\n", b"{}"])
def test_what_is_no_checkpoint_was_not_nearly_executed(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(text)
    with pytest.raises(WeightsError, match="is no checkpoint: neither safetensors nor"):
        open_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("code", [b"((.", b"K\x01s.", b"Q.", b"\x8c"])
def test_a_pickle_that_makes_no_sense(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02" + code)
    with pytest.raises(WeightsError, match=r"x\.pt (is damaged|holds more than tensors)") as raised:
        open_tensors(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("lm", load_causal_lm),
        ("lm", load_plain_lm),
        ("clip", lambda folder, dtype: load_tower("clip", folder, dtype)),
    ],
)
@pytest.mark.parametrize(
    "lie",
    [{"hidden_size": "wide"}, {"hidden_act": 3}, {"hidden_size": -8}, {"num_attention_heads": 0}],
)
def test_a_configuration_of_other_types(
    tmp_path: Path, part: str, load: Callable[[Path, torch.dtype], object], lie: dict[str, object]
) -> None:
    shutil.copytree(SHARED / "parity" / "neox" / part, tmp_path / part)
    config = json.loads((tmp_path / part / "config.json").read_text())
    (tmp_path / part / "config.json").write_text(json.dumps(config | lie))
    with pytest.raises(WeightsError) as raised:
        load(tmp_path / part, torch.float32)
    assert "\n" not in str(raised.value)


@pytest.mark.needs_shared
@pytest.mark.parametrize("int8", [False, True])
def test_another_shape_than_configured_is_named(tmp_path: Path, int8: bool) -> None:
    shutil.copytree(SHARED / "parity" / "llama" / "lm", tmp_path / "lm")
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    config["intermediate_size"] += 32
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config))
    with (
        int8_as_read(own=True) if int8 else nullcontext(),
        pytest.raises(WeightsError, match=r"lm.* (model\.layers).*mlp\.\w+_proj") as raised,
    ):
        load_causal_lm(tmp_path / "lm", torch.float32)
    assert "\n" not in str(raised.value)


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("lm", load_causal_lm),
        ("lm", load_plain_lm),
        ("clip", lambda folder, dtype: load_tower("clip", folder, dtype)),
    ],
)
def test_pointers_in_the_folders_of_frozen_parts(
    tmp_path: Path, part: str, load: Callable[[Path, torch.dtype], object]
) -> None:
    shutil.copytree(SHARED / "parity" / "llama" / part, tmp_path / part)
    (tmp_path / part / "model.safetensors").write_text(POINTER)
    with pytest.raises(WeightsError, match=r"model\.safetensors is a pointer of git-lfs"):
        load(tmp_path / part, torch.float32)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    held = {"a": torch.randn(100, 100)}
    if name == "x.pt":
        torch.save(held, path)
    else:
        save_file(held, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(WeightsError, match="is damaged") as raised:
        open_tensors(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        ({"a": "../x.safetensors"}, "a shard lies beside its index"),
        ({"a": "gone.safetensors"}, r"lacks the shard gone\.safetensors"),
        ({"a": "x.safetensors", "c": "x.safetensors"}, "lack c"),
        (["a"], "is no index"),
    ],
)
def test_a_bad_index(tmp_path: Path, shards: object, complaint: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(WeightsError, match=complaint):
        open_tensors(tmp_path)


def test_what_holds_no_tensors(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        open_tensors(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="is no file"):
        open_tensors(tmp_path / "y.pt")
    (tmp_path / "y.pt").write_text("a")
    with pytest.raises(WeightsError, match="holds 2 checkpoints"):
        open_tensors(tmp_path)


def test_wrappers_go_and_names_are_listed() -> None:
    name = "module._fsdp_wrapped_module.a._checkpoint_wrapped_module.b._orig_mod.weight"
    held = {name: HELD["b"], "h.attn.bias": HELD["b"], "proj.bias": HELD["b"]}
    assert list(unwrap(held)) == ["a.b.weight", "proj.bias"]
    assert listed(["a", "b"]) == "[a, b]"
    assert listed([str(i) for i in range(9)]) == "[0, 1, 2, 3, 4, 5 and 3 more]"
