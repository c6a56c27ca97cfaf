"""Models over several places: each tensor goes straight to its own, and says what it would."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, core_model_loading

from flamvid.errors import ConfigError, InputError, WeightsError
from flamvid.models.build import read_model_config
from flamvid.models.flamingo import Flamingo
from flamvid.models.hosts import load_host
from flamvid.models.lm import decoder_layers
from flamvid.models.transformers_encoder import load_tower
from flamvid.weights.idefics import load_idefics
from flamvid.weights.layout import Layout, layout
from flamvid.weights.load import load_config, load_model
from flamvid.weights.offload import OffloadFolder
from flamvid.weights.open_flamingo import build_open_flamingo, open_flamingo_tensors
from flamvid.weights.open_flamingo import layout as sizes_of
from flamvid.weights.otter import load_otter
from flamvid.weights.tensors import open_tensors
from tests.weights import test_flamingo_pytorch, test_idefics, test_otter
from tests.weights.reference import write_folder
from tests.weights.test_parity import CASES

accelerate = pytest.importorskip("accelerate")
MB = 1_000_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what goes to the disk is kept."""
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "offload"


@pytest.fixture(autouse=True)
def hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers hosts what is compared with, too."""
    monkeypatch.setattr("flamvid.models.lm.read_llama_config", lambda folder: None)


def same(model: Flamingo, plain: Flamingo) -> None:
    """Logits agree, but for the last bits of a layer that is computed behind a hook."""
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-4, rtol=1e-4)


def logits(model: Flamingo) -> Tensor:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 1, 4, model.resampler.config.features)
    ids = torch.tensor([[5, 3, 9, 30, 3, 31]])
    index = torch.tensor([[-1, 0, 0, 0, 1, 1]], dtype=torch.int32)
    with torch.no_grad():
        out: Tensor = model(features, ids, index)
    return out


def otter(folder: Path, kind: str) -> Callable[[], Flamingo]:
    test_otter.write(folder, *test_otter.make(kind))
    return lambda: load_otter(folder)


def open_flamingo(folder: Path, case: str) -> Callable[[], Flamingo]:
    make, (layers, embeddings), how = CASES[case]
    how = {name: value for name, value in how.items() if name != "heads"}
    write_folder(folder, make(), layers, embeddings, **how)
    source = next(folder.glob("checkpoint.*"))

    def load() -> Flamingo:
        tensors = open_flamingo_tensors(open_tensors(source))
        vision = load_tower("clip", folder / "clip", torch.float32)
        lm = load_host(folder / "lm", torch.float32)
        return build_open_flamingo(tensors, vision, lm, sizes_of(tensors, source), source).eval()

    return load


def idefics(folder: Path, alpha: str) -> Callable[[], Flamingo]:
    test_idefics.theirs(alpha).save_pretrained(folder, max_shard_size="40KB")
    return lambda: load_idefics(folder)


def palm(folder: Path, _: str) -> Callable[[], Flamingo]:
    return lambda: test_flamingo_pytorch.ours(test_flamingo_pytorch.theirs(), folder)


FORMATS = [
    (otter, "llama"),
    (otter, "mpt"),
    (open_flamingo, "opt-every-3-pt"),
    (open_flamingo, "llama-wrapped"),
    (open_flamingo, "neox"),
    (open_flamingo, "mpt-6-heads"),
    (open_flamingo, "mosaic"),
    (idefics, "vector"),
    (palm, ""),
]


def like(model: Flamingo, room: dict[int | str, int], int8: bool = False) -> Layout:
    config = read_model_config("flamvid-base")
    config = replace(config, resampler=model.resampler.config, xattn=model.xattn_config)
    return layout(config, "auto", room, int8)


@pytest.mark.parametrize(("make", "which"), FORMATS)
def test_every_format_on_the_disk(
    tmp_path: Path, home: Path, make: Callable[[Path, str], Callable[[], Flamingo]], which: str
) -> None:
    torch.manual_seed(0)
    load = make(tmp_path, which)
    plain = load()
    laid = like(plain, {"cpu": 0})
    with laid.laid():
        model = load()
    laid.belongs_to(model)
    layers = decoder_layers(model.lm.lm)
    assert {p.device.type for p in layers.parameters()} == {"meta"}
    rest = (model.vision, model.resampler, model.lm.inserted, model.lm.head)
    assert {p.device.type for part in rest for p in part.parameters()} == {"cpu"}
    same(model, plain)
    assert laid.folder is not None
    assert list(home.iterdir()) == [laid.folder.path]
    del model
    gc.collect()
    assert not list(home.iterdir())


def test_a_part_of_it_on_the_disk(tiny: Path, tmp_path: Path) -> None:
    plain = load_model(str(tiny))
    model = load_model(str(tiny), device_map="auto", max_memory={"cpu": 250_000})
    places = model.flamingo.lm.lm.hf_device_map
    layers = [places[f"model.layers.{i}"] for i in range(3)]
    assert set(layers) == {"cpu", "disk"}
    with pytest.raises(ConfigError, match=r"partly on the disk .* load it without device_map"):
        model.flamingo.save_pretrained(tmp_path)
    assert places["model.embed_tokens"] == places["lm_head"] == "cpu"
    same(model.flamingo, plain.flamingo)


def test_what_goes_to_the_disk_is_one_tensor_at_a_time_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    load = otter(tmp_path, "llama")
    laid = like(load(), {"cpu": 0})
    seen: list[weakref.ref[Any]] = []
    write = core_model_loading.offload_weight

    def spy(weight: Tensor, *rest: Any) -> Any:
        assert not any(ref() is not None for ref in seen)  # none before it is still there
        seen.append(weakref.ref(weight.untyped_storage()))
        return write(weight, *rest)

    monkeypatch.setattr(core_model_loading, "offload_weight", spy)
    with laid.laid():  # half as wide as in the file, so none is the file's own mapped memory
        model = load_otter(tmp_path, torch.bfloat16)
    assert len(seen) == sum(p.device.type == "meta" for p in model.parameters()) > 50
    assert laid.folder is not None
    written = sum(f.stat().st_size for f in laid.folder.path.iterdir())
    assert written >= 2 * sum(p.numel() for p in decoder_layers(model.lm.lm).parameters())


def test_what_lies_in_safetensors_already_is_not_written_again(tiny: Path, home: Path) -> None:
    model = load_model(str(tiny), device_map="auto", max_memory={"cpu": 0})
    assert {p.device.type for p in decoder_layers(model.flamingo.lm.lm).parameters()} == {"meta"}
    assert not [f for folder in home.iterdir() for f in folder.iterdir()]


def test_a_saved_model_with_new_tokens(tiny: Path, tmp_path: Path) -> None:
    plain = load_model(str(tiny)).flamingo
    plain.lm.add_tokens([3, 31])
    plain.save_pretrained(tmp_path / "saved")
    laid = like(plain, {"cpu": 0})
    with laid.laid():
        model = Flamingo.from_pretrained(tmp_path / "saved", own=False)
    assert {p.device.type for p in decoder_layers(model.lm.lm).parameters()} == {"meta"}
    same(model, plain)


def test_a_failure_leaves_nothing_on_the_disk(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = like(otter(tmp_path, "llama")(), {"cpu": 0})
    monkeypatch.setattr("flamvid.weights.otter.fill", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), laid.laid():
        load_otter(tmp_path)
    assert laid.folder is not None
    assert not list(home.iterdir())


def test_what_a_killed_process_left_is_deleted(home: Path) -> None:
    code = "from flamvid.weights.offload import OffloadFolder as F; f = F.made(); (f.path / 'x')"
    code += ".write_text('x'); print(f.path, flush=True); import os; os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert (left / "x").exists()
    assert left.parent == home
    mine = OffloadFolder.made()
    assert list(home.iterdir()) == [mine.path]
    other = OffloadFolder.made()
    assert mine.path.exists()  # for it is in use
    mine.delete()
    other.delete()
    assert not list(home.iterdir())


def test_a_cache_that_can_not_be_written(home: Path) -> None:
    home.parent.mkdir()
    home.write_text("a file")
    with pytest.raises(WeightsError, match=r"can't write to the cache .* set FLAMVID_HOME"):
        OffloadFolder.made()


def test_int8_is_not_laid_on_the_disk(tmp_path: Path, home: Path) -> None:
    load = otter(tmp_path, "llama")
    laid = like(load(), {"cpu": 1000}, int8=True)
    with pytest.raises(InputError, match=r"not fit in \{'cpu': 1000\} even as int8"), laid.laid():
        load()
    assert not home.exists()


def test_everything_in_memory_is_the_same(tiny: Path, home: Path) -> None:
    model = load_model(str(tiny), device_map="auto").flamingo
    assert set(model.lm.lm.hf_device_map.values()) == {"cpu"}
    assert torch.equal(logits(model), logits(load_model(str(tiny)).flamingo))
    assert not home.exists()


def test_what_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="device_map is 'wide'; must be one of auto"):
        load_model(str(tiny), device_map="wide")
    with pytest.raises(InputError, match=r"max_memory is \{'tpu': 3\}: Device tpu is not"):
        load_model(str(tiny), device_map="auto", max_memory={"tpu": 3})
    config = replace(read_model_config(str(tiny)), lm_state="unfrozen")
    with pytest.raises(ConfigError, match="frozen language models, and tiny's is unfrozen; give"):
        load_config(config, device_map="auto")


@pytest.mark.parametrize("kind", ["auto", "balanced_low_0", "sequential"])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_for_gpus_counts_the_new_layers(
    monkeypatch: pytest.MonkeyPatch, kind: str, int8: bool, tied: bool
) -> None:
    """What is on a GPU, with the new layers there, is no more than it has room for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = read_model_config("flamvid-base")
    config = replace(config, xattn=replace(config.xattn, first=1, every=2, heads=12, head_width=64))
    sizes = LlamaConfig(
        hidden_size=768, num_hidden_layers=12, vocab_size=5000, tie_word_embeddings=tied
    )
    with torch.device("meta"):
        lm = LlamaForCausalLM(sizes)
    room: dict[int | str, int] = {0: 300 * MB, 1: 300 * MB, "cpu": 300 * MB}
    names = {n: p.numel() * p.element_size() for n, p in lm.named_parameters()}
    laid = layout(config, kind, room, int8)
    places = laid._places(lm)
    assert places["model.embed_tokens"] == places["lm_head"] == 0
    assert set(places) >= {f"model.layers.{i}" for i in range(12)}
    new = {n: p.numel() * 4 for n, p in lm.named_parameters() if n not in names}
    used = dict.fromkeys([*room, "disk"], 0)
    for name, size in {**names, **new}.items():
        place = next(p for part, p in places.items() if f"{name}.".startswith(f"{part}."))
        place = place if name in names or isinstance(place, int) else 0
        used[place] += size // 4 if int8 and ".norm" not in name and name in names else size
    assert used[0] > 0 < used[1]
    assert all(used[at] <= most for at, most in room.items()), used
