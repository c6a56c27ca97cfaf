"""tools/parity.py on the golden folders, and on folders of other shapes made by a re-statement."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from tests.conftest import SHARED
from tests.weights.reference import IMAGE, LLAMA, MPT, NEOX, OPT, VOCAB, write_folder

TOOL = Path(__file__).parents[2] / "tools" / "parity.py"


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parity"] = module
    spec.loader.exec_module(module)
    return module


def opt(**sizes: int) -> PreTrainedModel:
    return OPTForCausalLM(
        OPTConfig(
            **{"hidden_size": 48, "word_embed_proj_dim": 48, "num_attention_heads": 3} | sizes,
            ffn_dim=64,
            num_hidden_layers=4,
            vocab_size=VOCAB,
            max_position_embeddings=64,
        )
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=6,
            num_attention_heads=2,
            vocab_size=VOCAB,
        )
    )


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=3,
            num_attention_heads=3,
            vocab_size=VOCAB,
        )
    )


def mpt() -> PreTrainedModel:
    return MptForCausalLM(MptConfig(d_model=42, n_heads=6, n_layers=5, vocab_size=VOCAB))


def mosaic() -> PreTrainedModel:
    return MosaicForCausalLM(MosaicConfig(d_model=48, n_heads=2, n_layers=2, vocab_size=VOCAB))


def released(name: str) -> str:
    return name.replace("lang_encoder.lm_head.", "lang_encoder.embed_out.")


def wrapped(name: str) -> str:
    """As DDP around FSDP around checkpointed layers leaves it."""
    name = name.replace("lang_encoder.", "lang_encoder._fsdp_wrapped_module.")
    layer = "gated_cross_attn_layer._fsdp_wrapped_module._checkpoint_wrapped_module."
    return f"module.{name.replace('gated_cross_attn_layer.', layer)}"


def aliased(name: str) -> str:
    """As in files that hold the new layers under the other name they also had."""
    found = re.search(r"layers\.(\d+)\.gated_cross_attn_layer\.(.*)", name)
    return f"lang_encoder.gated_cross_attn_layers.{found[1]}.{found[2]}" if found else name


CASES: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, tuple[str, ...]], dict]] = {
    "opt": (opt, OPT, {}),
    "opt-every-3-pt": (opt, OPT, {"every": 3, "torch_file": True}),
    "opt-projected": (lambda: opt(word_embed_proj_dim=16), OPT, {"every": 2}),
    "llama-every-4-heads": (llama, LLAMA, {"every": 4, "heads": (3, 32)}),
    "llama-wrapped": (llama, LLAMA, {"rename": wrapped, "torch_file": True}),
    "llama-aliased": (llama, LLAMA, {"rename": aliased, "every": 2}),
    "neox": (neox, NEOX, {"rename": released}),
    "mpt-6-heads": (mpt, MPT, {"every": 2}),
    "mosaic": (mosaic, MPT, {"every": 2, "torch_file": True}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_other_shapes_seeds_and_language_models(
    parity: ModuleType, tmp_path: Path, name: str, seed: int
) -> None:
    torch.manual_seed(seed)
    make, (layers, embeddings), how = CASES[name]
    write_folder(tmp_path, make(), layers, embeddings, **how)
    results = list(parity.compare(tmp_path))
    assert len(results) == 4
    assert sum(result.ids is True for result in results) == 3
    assert all(result.good for result in results), "\n".join(map(str, results))


def test_ids_after_a_written_image_are_those_of_their_cached_decoding(
    parity: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    write_folder(tmp_path, neox(), *NEOX, rename=released, loud=2)
    ids = load_file(tmp_path / "cases.safetensors")["three_images.generated"][0].tolist()[-6:]
    assert IMAGE in ids[:3]
    results = list(parity.compare(tmp_path))
    assert all(result.good for result in results), "\n".join(map(str, results))


def test_a_folder_that_breaks_anything_leaves_the_others_their_turn(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    good, bad, other = (write_folder(tmp_path / n, llama(), *LLAMA) for n in ("a", "b", "c"))
    cases = load_file(bad / "cases.safetensors")
    cases["one_image.pixels"] = cases["one_image.pixels"][:, :, :, :2].contiguous()
    save_file(cases, bad / "cases.safetensors")
    (other / "cases.safetensors").write_bytes(b"no tensors")
    assert parity.main([bad, other, good]) == 1
    out = capsys.readouterr().out
    assert len(re.findall("(?m)^  FAIL: .*", out)) == 2
    assert out.count(" ok\n") == 4


def test_another_number_fails(
    parity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    write_folder(tmp_path, llama(), *LLAMA)
    assert parity.main([tmp_path]) == 0
    cases = load_file(tmp_path / "cases.safetensors")
    cases["one_image.logits"] += 2e-4
    save_file(cases, tmp_path / "cases.safetensors")
    assert parity.main([tmp_path]) == 1
    assert re.search(r"one_image .* ids equal +FAIL", capsys.readouterr().out)
    assert parity.main([tmp_path / "none"]) == 1
    assert parity.main([tmp_path / "meta.json"]) == 1


@pytest.mark.needs_shared
def test_the_golden_folders() -> None:
    folders = sorted((SHARED / "parity").iterdir())  # and a README, which is passed over
    assert sum(folder.is_dir() for folder in folders) >= 5
    done = subprocess.run(
        [sys.executable, str(TOOL), *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") >= 4 * 6 + 3
    assert "FAIL" not in done.stdout
