"""`flamvid models`: what there is, fetched or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flamvid.cli.models import presets
from flamvid.errors import OfflineError
from flamvid.models.build import preset_names
from flamvid.weights import hub
from tests.conftest import SHARED
from tests.tiny import make_model


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def test_presets_are_those_of_the_model_room() -> None:
    assert list(presets()) == preset_names()


def test_list_names_models_and_parts(run: Any) -> None:
    rows = json.loads(run("models", "list", "--json").stdout)
    assert [row["name"] for row in rows][:1] == ["flamvid-base"]
    keys = {"name", "kind", "cached", "size_bytes", "licence", "source"}
    assert all(set(row) == keys for row in rows)
    assert not any(row["cached"] for row in rows)
    table = run("models", "list").stdout.splitlines()
    assert len(table) == len(rows) + 1
    assert table[0].split() == ["name", "kind", "cached", "licence", "source"]


def test_show_describes_models_and_parts(run: Any) -> None:
    assert "flamvid models pull flamvid-base" in run("models", "show", "flamvid-base").stdout
    facts = json.loads(run("models", "show", "smollm2-135m-instruct", "--json").stdout)
    assert len(facts["sha256"]) == 64
    result = run("models", "show", "flamvid-bse")
    assert result.exit_code == 2
    assert "did you mean 'flamvid-base'?" in result.stderr


def test_pull_fetches_the_parts_and_reports_each_failure(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str) -> Path:
        if name.startswith("efficientnet"):
            raise OfflineError(f"can't fetch {name}")
        return Path("/cache") / name

    monkeypatch.setattr(hub, "resolve", resolve)
    result = run("models", "pull", "flamvid-base", "org/name")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "smollm2-135m-instruct: /cache/smollm2-135m-instruct",
        "org/name: /cache/org/name",
    ]
    assert result.stderr == "flamvid: can't fetch efficientnet-lite2\n"


def test_show_counts_parameters_of_what_was_never_fetched(run: Any) -> None:
    facts = json.loads(run("models", "show", "openflamingo-3b", "--json").stdout)
    assert facts["parameters: cross-attention"] == "881,000,496"
    assert facts["licence"].startswith("MIT")
    assert facts["dtype"] == "float32"
    assert facts["adapter"] == "hub:openflamingo/OpenFlamingo-3B-vitl-mpt1b/checkpoint.pt"
    assert facts["cached"] == "no (flamvid models pull openflamingo-3b)"


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("name", "totals"), [("neox", ("445,632", "656,228")), ("idefics/checkpoint", ("62,624",))]
)
def test_show_counts_what_a_checkpoint_holds(run: Any, name: str, totals: tuple[str, ...]) -> None:
    facts = json.loads(run("models", "show", str(SHARED / "parity" / name), "--json").stdout)
    for part, total in zip(("resampler", "total"), totals, strict=False):
        assert facts[f"parameters: {part}"] == total


@pytest.mark.needs_shared
def test_show_of_a_broken_checkpoint_is_one_line(run: Any, tmp_path: Path) -> None:
    theirs = shutil.copytree(SHARED / "parity" / "llama", tmp_path / "theirs")
    assert run("models", "convert", str(theirs), str(tmp_path / "ours")).exit_code == 0
    tensors = load_file(theirs / "checkpoint.safetensors")
    del tensors["perceiver.layers.3.0.to_q.weight"]
    save_file(tensors, theirs / "checkpoint.safetensors")
    whole = (tmp_path / "ours" / "model.safetensors").read_bytes()
    (tmp_path / "ours" / "model.safetensors").write_bytes(whole[:-9])
    for folder, complaint in (
        ("theirs", "missing [perceiver.layers.3.0.to_q"),
        ("ours", "damaged"),
    ):
        result = run("models", "show", str(tmp_path / folder))
        assert result.exit_code == 1
        assert result.stdout == ""
        assert complaint in result.stderr
        assert result.stderr.count("flamvid: ") == 1


def test_hub_parts_of_a_preset() -> None:
    known = presets()
    assert known["idefics-9b"].parts == ["HuggingFaceM4/idefics-9b"]
    assert known["openflamingo-9b"].parts == [
        "anas-awadalla/mpt-7b",
        "openai/clip-vit-large-patch14",
        "hub:openflamingo/OpenFlamingo-9B-vitl-mpt7b/checkpoint.pt",
    ]


def test_a_part_in_the_hub_cache_is_found(tmp_path: Path) -> None:
    snapshot = tmp_path / "home/huggingface/models--org--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    assert not hub.is_cached("hub:org/name/x.pt")
    (snapshot / "x.pt").write_bytes(b"")
    assert hub.is_cached("hub:org/name/x.pt")
    assert hub.is_cached("org/name")
    assert not hub.is_cached("org/other")


def test_convert_writes_a_folder_and_refuses_a_full_one(
    run: Any, tmp_path: Path, tiny: Path
) -> None:
    result = run("models", "convert", str(tiny), "ours", "--dtype", "fp16")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "ours\n"
    facts = json.loads(run("models", "show", "ours", "--json").stdout)
    assert facts["dtype"] == "float16"
    assert facts["format"] == "saved"
    again = run("models", "convert", str(tiny), "ours")
    assert again.exit_code == 2
    assert "ours exists and is no empty folder" in again.stderr
    unknown = run("models", "convert", str(tiny.parent), "more")
    assert "--like openflamingo-3b" in unknown.stderr


def test_table_counts_models_beside_the_paper(run: Any) -> None:
    result = run("models", "table", "flamingo-3b", "flamvid-base")
    assert result.exit_code == 0, result.stderr
    head, paper, ours = (line.split() for line in result.stdout.splitlines())
    assert head[:6] == ["name", "LM", "vision", "XATTN", "resampler", "total"]
    assert paper == ["flamingo-3b", "1.374", "0.435", "1.208", "0.197", "3.215", "3.2", "+0.015"]
    assert ours[-3:] == ["0.159", "-", "-"]
    (row,) = json.loads(run("models", "table", "flamingo-3b", "--json").stdout)
    assert row["paper"] == 3.2


def test_a_model_of_the_paper_says_that_it_has_no_weights(run: Any) -> None:
    pulled = run("models", "pull", "flamingo-3b")
    assert pulled.exit_code == 1
    assert "flamingo-3b has no weights to fetch" in pulled.stderr
    shown = run("models", "show", "flamingo-3b").stdout
    assert "none: the paper's weights were never released" in shown
