"""Adapter files: what goes in comes out, and what is none is refused in a line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flamvid.errors import WeightsError
from flamvid.weights.adapter import load_adapter, save_adapter

TENSORS = {
    "resampler.latents": torch.randn(3, 4),
    "xattn.0.attn_gate": torch.tensor(0.5),
    "half": torch.randn(2, 2).half(),
    "vocabulary": torch.tensor([2, 5, 9], dtype=torch.int32),
}
CONFIG = {"model": {"name": "tiny", "mean": [0.5, 0.5]}, "step": 900, "said": "ein Hündchen"}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", TENSORS, CONFIG)
    tensors, config = load_adapter(tmp_path / "a.safetensors")
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_parameters_and_views_are_saved_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    views = {"turned": whole.T, "trained": torch.nn.Parameter(whole.clone())}
    save_adapter(tmp_path / "a.safetensors", views, {})
    tensors, _ = load_adapter(tmp_path / "a.safetensors")
    assert torch.equal(tensors["turned"], whole.T)
    assert torch.equal(tensors["trained"], whole)
    assert not tensors["trained"].requires_grad


def test_whoever_may_read_other_files_may_read_an_adapter(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", TENSORS, CONFIG)
    (tmp_path / "plain").touch()
    modes = {f.stat().st_mode for f in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a.safetensors", TENSORS, CONFIG)
    with pytest.raises(TypeError):
        save_adapter(tmp_path / "a.safetensors", TENSORS, {"path": tmp_path})
    assert load_adapter(tmp_path / "a.safetensors")[1] == CONFIG
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_adapter(path, TENSORS, CONFIG)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, r"a\.safetensors is damaged")


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04 as torch.save writes it",
        struct.pack("<Q", 1 << 60) + b"{}",  # a header that claims to be huge
        struct.pack("<Q", 2) + b"[]",
        b"\0" * 64,
    ],
)
def test_another_kind_of_file_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    refused(tmp_path / "a.safetensors", "is damaged")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"flamvid": "{"}])
def test_a_foreign_safetensors_file_is_no_adapter(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    refused(path, "is no flamvid adapter")


def test_a_missing_file_or_a_folder_says_what_writes_one(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "flamvid train")
    refused(tmp_path, "flamvid train")


def test_any_safetensors_reader_can_read_it(tmp_path: Path) -> None:
    # by the format's own words: eight bytes of length, then JSON
    save_adapter(tmp_path / "a.safetensors", TENSORS, CONFIG)
    data = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert json.loads(header["__metadata__"]["flamvid"]) == CONFIG
    assert header["vocabulary"]["shape"] == [3]


def refused(path: Path, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint) as raised:
        load_adapter(path)
    assert "\n" not in str(raised.value)
