"""Models by name: the frozen host against transformers' own, and what does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from flamvid.errors import ConfigError, FlamvidError, InputError, WeightsError
from flamvid.models.build import read_model_config
from flamvid.models.int8 import Int8Linear
from flamvid.weights import hub
from flamvid.weights.adapter import load_adapter, save_adapter
from flamvid.weights.load import load_model, load_trained, torch_dtype
from flamvid.weights.source import source_config
from tests.tiny import make_model, make_tokenizer


@torch.inference_mode()
def test_the_host_says_what_transformers_says() -> None:
    loaded = load_model("flamvid-base", dtype="float32", trained=False)
    folder = hub.resolve("smollm2-135m-instruct")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    flamingo, prompts = loaded.flamingo, loaded.prompts
    ids = torch.tensor([prompts.caption("A dog runs over the grass; 3 children watch it.")])
    wanted = theirs(ids).logits
    bare = flamingo.lm.head(flamingo.lm(ids))
    torch.testing.assert_close(bare, wanted, atol=1e-3, rtol=1e-4)
    # With a video in front and all gates at 0, too.
    features = flamingo.encode(torch.rand(2, 3, 260, 260))
    index = torch.zeros_like(ids, dtype=torch.int32)
    assert torch.equal(flamingo(features[None, None], ids, index), bare)
    assert features.shape == (2, 81, 1280)
    # As int8 it has the numbers of the 4-bit file it came from; what is left is their rounding to
    # half precision in our cache.
    small = load_model("flamvid-base", dtype="int8", trained=False).flamingo.lm
    said = small.head_of(torch.arange(49152))(small(ids)).softmax(-1)
    torch.testing.assert_close(said, wanted.softmax(-1), atol=2e-3, rtol=0)


def test_an_adapter_is_in_the_model(tiny: Path) -> None:
    loaded = load_model(str(tiny))
    tensors, _ = load_adapter(tiny.with_suffix(".safetensors"))
    trained = dict(loaded.flamingo.trained())
    assert trained.keys() == tensors.keys()
    assert all(torch.equal(trained[name], tensors[name]) for name in trained)
    assert loaded.head is None
    assert not loaded.flamingo.training


def test_without_an_adapter_the_gates_are_closed(tiny: Path) -> None:
    loaded = load_model(str(tiny), trained=False)
    gates = [p for name, p in loaded.flamingo.trained() if name.endswith("gate")]
    assert len(gates) == 4
    assert not any(gates)


def test_an_end_that_is_added_leaves_the_language_model_its_own(tmp_path: Path) -> None:
    toml = make_model(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<end>"
    tokenizer.save_pretrained(tmp_path / "lm")
    assert load_model(str(toml)).prompts.eos_id is None
    added = toml.read_text().replace('end = "<end>"', 'end = "<EOC>"\nadded = ["<EOC>"]')
    toml.write_text(added)
    prompts = load_model(str(toml), trained=False).prompts
    assert prompts.eos_id == tokenizer.convert_tokens_to_ids("<end>") != prompts.end_id


def test_a_vocabulary_becomes_the_head(tiny: Path, tmp_path: Path) -> None:
    loaded = load_model(str(with_adapter(tiny, tmp_path, vocabulary=torch.tensor([3, 7, 40]))))
    assert loaded.head is not None
    assert loaded.head.ids.tolist() == [3, 7, 40]
    assert torch.equal(loaded.head.weight, loaded.flamingo.lm.head.weight[[3, 7, 40]])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"resampler.latents": None}, r"missing \['resampler\.latents'\], unexpected \[\]"),
        ({"xattn.9.gate": torch.ones(1)}, r"missing \[\], unexpected \['xattn\.9\.gate'\]"),
        ({"resampler.latents": torch.ones(5, 16)}, r"\(5, 16\), the model wants \(4, 16\)"),
        ({"xattn.0.attn_gate": torch.ones(1)}, r"\(1,\), the model wants \(\)"),
        ({"vocabulary": torch.tensor([3, 9, 1_000_000])}, "vocabulary"),
        ({"vocabulary": torch.tensor([-1, 9])}, "vocabulary"),
        ({"vocabulary": torch.tensor([9, 3])}, "vocabulary"),
        ({"vocabulary": torch.tensor([[3, 9]])}, "vocabulary"),
        ({"vocabulary": torch.tensor([], dtype=torch.int32)}, "vocabulary"),
    ],
)
def test_an_adapter_that_does_not_fit(
    tiny: Path, tmp_path: Path, changes: dict[str, Tensor | None], complaint: str
) -> None:
    with pytest.raises(WeightsError, match=complaint) as raised:
        load_model(str(with_adapter(tiny, tmp_path, **changes)))
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_an_adapter_that_does_not_fit_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny)).flamingo
    before = {name: p.clone() for name, p in model.trained()}
    others = {name: p + 1 for name, p in before.items()}
    last = list(before)[-1]
    save_adapter(tmp_path / "a.safetensors", others | {last: torch.ones(7, 7)}, {})
    with pytest.raises(WeightsError, match=r"\(7, 7\)"):
        load_trained(model, tmp_path / "a.safetensors")
    assert all(torch.equal(p, before[name]) for name, p in model.trained())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('weights = "{}/vision"', 'weights = "{}/lm"', "do not fit"),
        ('weights = "{}/vision"', 'weights = "{}"', r"no weights that fit .*model\.safetensors"),
        ('weights = "{}/vision"', 'weights = "{}/wide"', "no weights that fit .*size mismatch"),
        ('weights = "{}/vision"', "", "no weights"),
        ('lm = "{}/lm"', 'lm = "{}/vision"', "no causal language model"),
        ('lm = "{}/lm"', 'lm = "smollm3"', "no weights are called 'smollm3'"),
        ('media = "<media>"', 'media = "<video>"', "no token '<video>'"),
        ("features = 256", "features = 255", "the vision encoder gives 256"),
        ('adapter = "tiny', 'adapter = "none', "give an adapter that `flamvid train` wrote"),
    ],
)
def test_parts_that_are_not_there_or_do_not_fit(
    tiny: Path, tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    text = tiny.read_text()
    wide = tiny.parent / "wide"  # the same names with other shapes
    wide.mkdir(exist_ok=True)
    tensors = load_file(tiny.parent / "vision" / "model.safetensors")
    save_file(
        {name: t.expand(2, *t.shape).contiguous() for name, t in tensors.items()},
        wide / "model.safetensors",
    )
    old, new = old.format(tiny.parent), new.format(tiny.parent)
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new))
    shutil.copy(tiny.with_suffix(".safetensors"), tmp_path)
    with pytest.raises(FlamvidError, match=complaint) as raised:
        load_model(str(tmp_path / "tiny.toml"))
    assert "\n" not in str(raised.value)


def test_a_language_model_without_a_tokenizer(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny.parent, tmp_path / "copy")
    for file in (tmp_path / "copy" / "lm").glob("tokenizer*"):
        file.unlink()
    toml = tmp_path / "copy" / "tiny.toml"
    toml.write_text(tiny.read_text().replace(str(tiny.parent), str(tmp_path / "copy")))
    with pytest.raises(WeightsError, match="tokenizer"):
        load_model(str(toml))


def test_devices_and_dtypes(tiny: Path) -> None:
    assert load_model(str(tiny), dtype="bf16").flamingo.lm.head.weight.dtype == torch.bfloat16
    assert torch_dtype("fp16") == torch_dtype(torch.float16) == torch.float16
    assert load_model(str(tiny), dtype="auto").dtype == torch.float32
    assert isinstance(load_model(str(tiny), dtype="int8").flamingo.lm.head, Int8Linear)
    with pytest.raises(InputError, match="dtype is 'int4'; must be auto or one of float32"):
        load_model(str(tiny), dtype="int4")
    with pytest.raises(InputError, match="device is 'gpu'"):
        load_model(str(tiny), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            load_model(str(tiny), device="cuda")


def test_an_unknown_model_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is called 'flamvid-bse'; there are flamvid-"):
        load_model("flamvid-bse")
    with pytest.raises(ConfigError, match="can't read"):
        load_model(str(tmp_path / "none.toml"))


def test_a_folder_of_a_models_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "otter-image").mkdir()
    assert source_config("otter-image") == read_model_config("otter-image")
    with pytest.raises(ConfigError, match="no model is called ''"):
        source_config("")


def with_adapter(tiny: Path, folder: Path, **changes: Tensor | None) -> Path:
    """A copy of the model with these tensors in its adapter, or without where None."""
    tensors, _ = load_adapter(tiny.with_suffix(".safetensors"))
    changed = {name: t for name, t in (tensors | changes).items() if t is not None}
    save_adapter(folder / "tiny.safetensors", changed, {})
    return Path(shutil.copy(tiny, folder))
